"""The corpus of a cache scope: which jobs' answers drafts may come from, and these answers.

Only names are kept for it. The answers are read from results, so none outlives its result, and who
drops a result takes it out of the corpus.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.events import FINISHED_REASONS
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.errors import JobDropped, SchemaMismatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys

# Names of one scope, the newest.
MAX_NAMES = 256


class CorpusCalls:
    """Typed calls about corpora; jobs are named by their addresses.

    Each raises what the server says.
    """

    def __init__(self, keys: Keys, redis: Redis) -> None:
        self._keys = keys
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis

    async def note(self, scope: str, jobs: Sequence[str], ttl_ms: int) -> None:
        """Add jobs that ended to the corpus of a scope, which lives as long as their results."""
        name = self._name(scope)
        seconds, microseconds = await self._redis.time()
        now_ms = seconds * 1000 + microseconds // 1000
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zadd(name, dict.fromkeys(jobs, now_ms))
            pipe.zremrangebyscore(name, "-inf", now_ms - ttl_ms)
            pipe.pexpire(name, ttl_ms)
            pipe.zrange(name, 0, -MAX_NAMES - 1)
            *_, past = await pipe.execute()
        if past:
            await self._redis.zrem(name, *past)

    async def newest(self, scope: str, count: int) -> list[str]:
        """Return the jobs of a scope that ended last, the newest last."""
        found = await self._redis.zrange(self._name(scope), -count, -1)
        return [each.decode() for each in found]

    async def answers(self, jobs: Sequence[str]) -> list[list[tuple[int, ...]]]:
        """Return the token ids of each job's choices; none where it has no result or failed."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.get(self._keys.result(job))
            return [_choices(stored) for stored in await pipe.execute()]

    async def have_results(self, jobs: Sequence[str]) -> list[bool]:
        """Tell of each job whether its result is there."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for job in jobs:
                pipe.exists(self._keys.result(job))
            return [bool(found) for found in await pipe.execute()]

    def _name(self, scope: str) -> str:
        return self._keys.of("said", hashlib.sha256(scope.encode()).hexdigest()[:32])


def _choices(stored: bytes | None) -> list[tuple[int, ...]]:
    if stored is None:
        return []
    try:
        result = JobResult.parse(stored)
    except (JobDropped, SchemaMismatch):
        return []
    is_whole = result.finish.reason in FINISHED_REASONS
    return [choice.ids for choice in result.choices if choice.ids] if is_whole else []
