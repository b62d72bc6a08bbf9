"""The pools that boards look at: one look a second for all who watch, and what it was before."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenbus.producer.client.watching.ended_jobs import latencies_of
from tokenbus.producer.client.watching.pool_watch import PoolSight, PoolWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.client.watching.ended_jobs import Quantiles
    from tokenbus.producer.scripts.timeline import EndedJob

# How old a look may be that another one is answered by.
_BELIEVED_S = 0.9
# A sample for each step of the past quarter of an hour.
STEP_S = 5
NUM_STEPS = 180
# Pools that nobody has looked at for so long are forgotten.
_FORGOTTEN_S = 1800.0


@dataclass(frozen=True, slots=True)
class PoolSample:
    """A pool in one step: when it ended, what it did, and what waited.

    None is what nobody looked at: of steps before the first look the jobs alone tell that have
    ended since, so what waited is not known.
    """

    at_ms: int
    generated_per_s: float | None
    prompt_per_s: float | None
    waiting_jobs: int | None
    held_jobs: int | None
    num_ended: int
    num_failed: int
    ttft: Quantiles | None
    queue: Quantiles | None


@dataclass(slots=True)
class _Watched:
    watch: PoolWatch
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    sight: PoolSight | None = None
    looked_at: float = float("-inf")
    asked_at: float = float("-inf")
    samples: deque[PoolSample] = field(default_factory=lambda: deque(maxlen=NUM_STEPS))


class WatchedPools:
    """Looks at pools on behalf of every board that this process serves."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}

    async def sight(self, client: AsyncClient) -> PoolSight:
        """Return a client's pool as of a moment ago. Raises: what a call on the server raises."""
        watched = self._of(client)
        async with watched.looking:
            if watched.sight is None or time.monotonic() - watched.looked_at > _BELIEVED_S:
                watched.sight = await watched.watch.look()
                watched.looked_at = time.monotonic()
                self._sample(watched, watched.sight)
            return watched.sight

    def samples(self, client: AsyncClient) -> Sequence[PoolSample]:
        """Return the pool's past as far as it is known, the oldest step first."""
        return self._of(client).samples

    def ended(self, client: AsyncClient) -> Sequence[EndedJob]:
        """Return the jobs that ended last, as of the last look, the newest last."""
        return self._of(client).watch.ended.jobs

    def _of(self, client: AsyncClient) -> _Watched:
        now, keys = time.monotonic(), client.scripts.keys
        for name in [
            name for name, each in self._watched.items() if now - each.asked_at > _FORGOTTEN_S
        ]:
            del self._watched[name]
        watched = self._watched.get(keys.pool)
        if watched is None:
            watched = _Watched(PoolWatch(client.scripts.redis, keys))
            self._watched[keys.pool] = watched
        watched.asked_at = now
        return watched

    def _sample(self, watched: _Watched, sight: PoolSight) -> None:
        """Write down the steps that have ended since the last sample."""
        step_ms = STEP_S * 1000
        now_ms = sight.figures.at_ms // step_ms * step_ms
        samples = watched.samples
        first = samples[-1].at_ms + step_ms if samples else now_ms - (NUM_STEPS - 1) * step_ms
        first = max(first, now_ms - (NUM_STEPS - 1) * step_ms)
        if first > now_ms:
            return
        is_fresh = bool(samples) and now_ms - samples[-1].at_ms <= 2 * step_ms
        times = range(first, now_ms + 1, step_ms)
        for at_ms, jobs in zip(
            times, _by_step(watched.watch.ended.jobs, times, step_ms), strict=True
        ):
            is_seen = at_ms == now_ms or is_fresh
            samples.append(_sample_of(at_ms, jobs, sight if is_seen else None))


def _by_step(jobs: Sequence[EndedJob], times: range, step_ms: int) -> list[list[EndedJob]]:
    """Return the jobs that ended in each step, of steps that end at `times`."""
    steps: list[list[EndedJob]] = [[] for _ in times]
    for job in reversed(jobs):
        at = (job.ended_ms - times.start + step_ms - 1) // step_ms
        if at < 0:
            break
        if at < len(steps):
            steps[at].append(job)
    return steps


def _sample_of(at_ms: int, jobs: Sequence[EndedJob], sight: PoolSight | None) -> PoolSample:
    latencies = latencies_of(jobs)
    if sight is None:
        generated: float | None = sum(job.output_tokens for job in jobs) / STEP_S
        prompt: float | None = sum(job.prompt_tokens for job in jobs) / STEP_S
        waiting = held = None
    else:
        figures = sight.figures
        generated, prompt = figures.generated_tokens_per_s, figures.prompt_tokens_per_s
        waiting, held = figures.status.waiting_jobs, figures.status.held_jobs
    return PoolSample(
        at_ms=at_ms,
        generated_per_s=generated,
        prompt_per_s=prompt,
        waiting_jobs=waiting,
        held_jobs=held,
        num_ended=len(jobs),
        num_failed=sum(job.reason == "failed" for job in jobs),
        ttft=latencies.get("ttft"),
        queue=latencies.get("queue"),
    )
