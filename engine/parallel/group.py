"""The group of a rank: its collectives, and what its runner tells and asks the other ranks."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from tokenbus.engine.parallel.collective import Alone, Collective

if TYPE_CHECKING:
    import torch

    from tokenbus.engine.sampling.plan import SamplingPlan
    from tokenbus.engine.scheduling.plan import StepPlan


class RankGroup:
    """The group of a rank that runs alone; those of several ranks say more.

    Every rank launches the same steps: rank 0 those that its scheduler plans, the others those that
    it tells them of. Whatever they launch calls the same collectives in the same order.
    """

    collective: Collective = Alone()
    # Where the ranks of several are, for people.
    topology = ""

    @property
    def follower_pids(self) -> tuple[int, ...]:
        """Process ids of the other ranks, in their order."""
        return ()

    def loaded(self) -> None:
        """Wait until all ranks have their weights.

        Raises: what a rank that could not load has raised, with its number.
        """

    def release(self, row: int) -> None:
        """Forget whose a row is: its sequence ended or was preempted."""

    def step(
        self,
        plan: StepPlan,  # noqa: ARG002
        sampling: SamplingPlan,  # noqa: ARG002
    ) -> AbstractContextManager[None]:
        """Launch a step inside, together with all ranks; its rows are set up already.

        sampling: what all its draws need.
        Raises: RankLost.
        """
        return nullcontext()

    def probe(self) -> AbstractContextManager[None]:
        """Ask the model inside whether it is sound, together with all ranks. Raises: RankLost."""
        return nullcontext()

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait until the device has come to an event. Raises: RankLost."""
        event.synchronize()

    def check(self) -> None:
        """Raise RankLost if a rank was lost."""

    def close(self) -> None:
        """End the other ranks."""


ALONE = RankGroup()
