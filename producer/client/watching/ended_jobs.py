"""The jobs of a pool that ended last: read as they come, and what they say of its speed.

The pool keeps the last two thousand, each with its timeline and without a word of its text.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError

from tokenbus.producer.scripts.timeline import EndedJob

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys

MAX_ENDED = 2000
# Rows of the first look at what is new; while none of them is known, twice as many are read.
_FIRST_ROWS = 64
RECENT_S = 60.0
LATENCIES = ("queue", "ttft", "itl", "e2e")


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of durations in ms, `count` of them."""

    p50_ms: float
    p95_ms: float
    count: int


@dataclass(frozen=True, slots=True)
class EndedFigures:
    """What the jobs that ended in the last `seconds` say; `latencies` are by name (`LATENCIES`).

    A job that was never pulled has no latency, and one with several owners no gaps between tokens.
    """

    seconds: float
    reasons: Mapping[str, int] = field(default_factory=dict)
    num_resumed: int = 0
    output_tokens: int = 0
    latencies: Mapping[str, Quantiles] = field(default_factory=dict)

    @property
    def num_jobs(self) -> int:
        """Count the jobs."""
        return sum(self.reasons.values())

    @property
    def jobs_per_s(self) -> float:
        """Return how many ended in a second."""
        return self.num_jobs / self.seconds if self.seconds > 0 else 0.0


class EndedJobs:
    """Follows the list of one pool; `jobs` has the newest last.

    `is_refused` tells that the server's user may not read it.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis
        self._key = keys.of("recent")
        self._last_row = b""
        self.jobs: deque[EndedJob] = deque(maxlen=MAX_ENDED)
        self.num_seen = 0
        self.is_refused = False

    async def read(self) -> None:
        """Read what is new. Raises: what a call on the server raises."""
        count = _FIRST_ROWS
        while True:
            try:
                rows: list[bytes] = await self._redis.lrange(self._key, -count, -1)
            except NoPermissionError:
                self.is_refused = True
                return
            is_all = len(rows) < count or count >= MAX_ENDED
            at = _last_index(rows, self._last_row)
            if at is None and not is_all:
                count = min(MAX_ENDED, 2 * count)
                continue
            self._take(rows if at is None else rows[at + 1 :])
            return

    def _take(self, rows: Sequence[bytes]) -> None:
        for row in rows:
            job = EndedJob.parse(row)
            if job is not None:
                self.jobs.append(job)
        self.num_seen += len(rows)
        if rows:
            self._last_row = rows[-1]

    def figures(self, now_ms: int, seconds: float = RECENT_S) -> EndedFigures:
        """Sum up what ended in the last `seconds`, or as far back as is remembered."""
        since = now_ms - int(seconds * 1000)
        recent = []
        for job in reversed(self.jobs):
            if job.ended_ms <= since:
                break
            recent.append(job)
        if recent and len(self.jobs) == MAX_ENDED and len(recent) == MAX_ENDED:
            seconds = max(0.001, (now_ms - recent[-1].ended_ms) / 1000)
        return EndedFigures(
            seconds,
            Counter(job.reason for job in recent),
            sum(job.num_owners > 1 for job in recent),
            sum(job.output_tokens for job in recent),
            latencies_of(recent),
        )


def latencies_of(jobs: Iterable[EndedJob]) -> dict[str, Quantiles]:
    """Return the quantiles of each latency that any of some jobs has."""
    durations: dict[str, list[float]] = {name: [] for name in LATENCIES}
    for job in jobs:
        told = (job.queue_ms, job.ttft_ms, job.itl_ms, job.e2e_ms)
        for name, duration in zip(LATENCIES, told, strict=True):
            if duration is not None:
                durations[name].append(duration)
    return {name: _quantiles(values) for name, values in durations.items() if values}


def _quantiles(values: list[float]) -> Quantiles:
    values.sort()
    last = len(values) - 1
    return Quantiles(
        values[last // 2], values[min(last, int(0.95 * len(values)))], count=len(values)
    )


def _last_index(rows: Sequence[bytes], row: bytes) -> int | None:
    """Return where a row stands last; None where it does not."""
    for at in range(len(rows) - 1, -1, -1):
        if rows[at] == row:
            return at
    return None
