"""The backlog of a pool in seconds: when the last job that waits now will be begun.

It is worked off as seats fall free, and a job keeps its seat for as long as it generates. How many
seats there are and when each falls free says `seats/`. Where that is not known, or too many wait to
follow each, what waits is counted as work: the tokens that may be generated, and a part of those of
the prompts. A
worker that starts brings nothing until it is ready, then as many free seats as a full worker has,
and then its rate. Workers that are not started yet are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# A prompt's token in generated ones. An engine whose batch is full takes prompts in four times as
# fast as it generates, one with eight sequences twenty-five times as fast (bf16 on an H200); this
# lies between.
PROMPT_SHARE = 1 / 16
# As in `lib/drain_rate.lua`: shorter backlogs tell nothing.
_MIN_BUSY_MS = 500
DRAIN_FIELDS = ("tokens", "prompts", "pulled", "jobs", "busy", "workers", "full", "start_s")


@dataclass(frozen=True, slots=True)
class Backlog:
    """Jobs that wait and are due: their number, all their tokens, and those in prompts."""

    jobs: int
    tokens: int
    prompts: int

    @property
    def output_tokens(self) -> int:
        """Return the tokens that may be generated; where prompts are not counted, all."""
        return self.tokens - min(max(0, self.prompts), self.tokens)

    @property
    def work(self) -> float:
        """Return them in generated tokens; earlier releases count no prompts, or count on."""
        return _work(self.tokens, min(max(0, self.prompts), self.tokens))


@dataclass(frozen=True, slots=True)
class Assumed:
    """What is taken for true of a pool that has shown nothing yet.

    `tokens_per_s` is how fast waiting tokens are taken: a small model on a CPU does so many.
    `start_s` is how long a worker takes to start that has its model on a disk.
    """

    tokens_per_s: float = 1000.0
    start_s: float = 30.0

    def seconds_until_begun(
        self, tokens: int, num_ready: int, starting_for_s: Iterable[float]
    ) -> float:
        """Return the seconds until so many tokens have a seat; arguments as of a `DrainRate`."""
        until_ready_s = max(0.0, self.start_s - max(starting_for_s, default=0.0))
        return (0.0 if num_ready else until_ready_s) + tokens / self.tokens_per_s


@dataclass(frozen=True, slots=True)
class DrainRate:
    """How fast one full worker begins waiting jobs, as `lib/drain_rate.lua` keeps it.

    `full_work` is the work of the jobs that it runs at once, `num_workers` how many there were
    last, and `start_s` how long a start takes in the mean, 0 where none was seen.
    """

    tokens_per_s: float
    work_per_s: float
    full_work: float
    num_workers: int
    start_s: float

    @classmethod
    def read(cls, stored: Sequence[bytes | None]) -> Self | None:
        """Read what is stored under `DRAIN_FIELDS`; None where too little was seen."""
        tokens, prompts, pulled, jobs, busy_ms, workers, full, start_s = (
            float(each or 0) for each in stored
        )
        if not pulled:
            # Earlier releases count no jobs.
            pulled = jobs = 1.0
        if busy_ms < _MIN_BUSY_MS or tokens <= 0 or jobs <= 0:
            return None
        work_a_job = _work(tokens, prompts) / pulled
        per_s = 1000 * jobs / busy_ms
        return cls(
            tokens_per_s=tokens / pulled * per_s,
            work_per_s=work_a_job * per_s,
            full_work=work_a_job * full,
            num_workers=max(1, round(workers)),
            start_s=start_s,
        )

    def ready_in_s(self, num_ready: int, starting_for_s: Iterable[float]) -> list[float]:
        """Return when each worker that starts will be ready, the first of them first.

        `starting_for_s` has how long each worker starts already. Where none is ready and none
        starts, as many as there were last would start now.
        """
        starts = sorted(max(0.0, self.start_s - for_s) for for_s in starting_for_s)
        return starts if starts or num_ready else [self.start_s] * self.num_workers

    def seconds_until_begun(
        self, work: float, num_ready: int, starting_for_s: Iterable[float]
    ) -> float:
        """Return the seconds until so much work has a seat; the others as of `ready_in_s`."""
        at_s = 0.0
        for ready_at_s in self.ready_in_s(num_ready, starting_for_s):
            done = num_ready * self.work_per_s * (ready_at_s - at_s)
            if num_ready and done >= work:
                break
            work, at_s, num_ready = work - done - self.full_work, ready_at_s, num_ready + 1
            if work <= 0:
                return at_s
        return at_s + work / (num_ready * self.work_per_s)


def _work(tokens: float, prompts: float) -> float:
    return tokens - prompts * (1 - PROMPT_SHARE)
