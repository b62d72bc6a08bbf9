"""The publisher pool: which publisher of a worker keeps which log, and orders to all."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.worker.logs import get_logger
from tokenbus.worker.messages.publishing import CloseGate, OpenGate, Renewed, TakeOver

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.publisher_link import PublisherLink
    from tokenbus.worker.messages.engine import StepRecord
    from tokenbus.worker.messages.publishing import Order, TextRules
    from tokenbus.worker.session import Session

# A process that uses more of a core than this gets company for the jobs to come.
_FULL_SHARE = 0.6
_LOOK_INTERVAL_S = 1.0


class PublisherPool:
    """Runs the publishers; the one that takes a job's log over keeps it as long as it is held.

    Up to `max_links` are made by `make_link` when those there are get full.
    """

    def __init__(
        self,
        session: Session,
        links: Sequence[PublisherLink],
        *,
        make_link: Callable[[], PublisherLink] | None = None,
        max_links: int = 0,
    ) -> None:
        self._session = session
        self._links = list(links)
        self._make_link = make_link
        self._max_links = max_links
        self._gate: OpenGate | None = None
        self._log = get_logger()
        session.when_lost(self._close)

    @property
    def num_processes(self) -> int:
        """Count the processes that publish for this worker, itself not included."""
        return len(self._links) if self._max_links else 0

    def open_gate(self) -> None:
        """Let all write, after a reconcile; what they know about the logs is void."""
        self._gate = self._open_gate()
        self._tell_all(self._gate)

    def renewed(self) -> None:
        """Tell all that the lease was renewed."""
        self._tell_all(Renewed(self._session.renewed_at, self._session.until_ms))

    def take_over(self, job: HeldJob, rules: TextRules | None, *, is_ahead: bool = False) -> None:
        """Let a job's log be taken over, once; `is_ahead` if the engine gets the job meanwhile."""
        job.publisher_link = min(self._links, key=lambda publisher_link: publisher_link.num_jobs)
        job.publisher_link.num_jobs += 1
        job.publisher_link.send(
            TakeOver(
                key=job.request_id,
                job_id=job.job_id,
                epoch=job.epoch,
                prompt_tokens=job.prompt_tokens,
                rules=rules,
                is_ahead=is_ahead,
                version=job.pulled.version,
                listen=job.listen,
                priority=job.pulled.priority,
                submitted_at=job.timings.submitted_at,
            )
        )

    def take_step(self, step: StepRecord) -> None:
        """Pass a step's tokens on; each publisher link takes the rows of its own jobs."""
        for publisher_link in self._links:
            publisher_link.send_step(step)

    async def run(self) -> None:
        """Run all publisher links, and start more where the rate asks for them."""
        async with asyncio.TaskGroup() as tasks:
            for publisher_link in self._links:
                tasks.create_task(publisher_link.run())
            while self._make_link is not None and len(self._links) < self._max_links:
                await asyncio.sleep(_LOOK_INTERVAL_S)
                shares = [publisher_link.busy_share() for publisher_link in self._links]
                if min(shares) > _FULL_SHARE:
                    await self._add(self._make_link(), tasks)

    async def stop(self) -> None:
        """End all publisher links."""
        for publisher_link in self._links:
            await publisher_link.stop()

    async def _add(self, publisher_link: PublisherLink, tasks: asyncio.TaskGroup) -> None:
        await publisher_link.start()
        self._links.append(publisher_link)
        tasks.create_task(publisher_link.run())
        if self._gate is not None and self._session.is_open:
            publisher_link.send(self._open_gate())
        self._log.info("publisher.started", publishers=len(self._links))

    def _open_gate(self) -> OpenGate:
        session = self._session
        return OpenGate(session.generation, session.renewed_at, session.until_ms)

    def _tell_all(self, order: Order) -> None:
        for publisher_link in self._links:
            publisher_link.send(order)

    def _close(self, _: str) -> None:
        self._tell_all(CloseGate())
