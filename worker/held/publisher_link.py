"""The publisher link: the worker's way to a publisher, in its own process or another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tokenbus.worker.messages.engine import StepRecord
    from tokenbus.worker.messages.publishing import Order


class PublisherLink(Protocol):
    """The way to a publisher; `num_jobs` counts the jobs that it was given."""

    num_jobs: int

    def send(self, order: Order) -> None:
        """Pass an order on; orders arrive in the sequence of the calls."""
        ...

    def send_step(self, step: StepRecord) -> None:
        """Pass a step on; where it travels, that is as the frame that it came in."""
        ...

    def busy_share(self) -> float:
        """Return the share of a core that the publisher used since the last call."""
        ...

    async def start(self) -> None:
        """Get ready for orders. Raises: PublisherDied."""
        ...

    async def run(self) -> None:
        """Work for ever. Raises: PublisherDied."""
        ...

    async def stop(self) -> None:
        """End what was started."""
        ...
