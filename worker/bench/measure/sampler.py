"""The queue and the pages over time, and what the workers count."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys

INTERVAL_S = 0.25
_SCRATCH_PAGES = 1


class Sample(msgspec.Struct, frozen=True):
    """One look at the pool; pages and sequences are what its workers said within the last second.

    `at_s` counts from the start of the run; `server_bytes` is the memory in use.
    """

    at_s: float
    waiting_jobs: int
    waiting_tokens: int
    running: int
    pages_used: int
    pages_cached: int
    pages_total: int
    server_bytes: int


class Counters(msgspec.Struct, frozen=True):
    """What the workers have counted since their start, summed up."""

    tokens_logged: int = 0
    log_entries: int = 0
    log_calls: int = 0
    preemptions: int = 0
    peak_running: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    preempted_tokens: int = 0

    def since(self, earlier: Counters) -> Counters:
        """Return what was counted in between; the peak is that of the later look."""
        changes = {
            name: getattr(self, name) - getattr(earlier, name) for name in self.__struct_fields__
        }
        return Counters(**(changes | {"peak_running": self.peak_running}))


class Sampler:
    """Looks at a pool from time to time."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._began_s = time.monotonic()
        self.samples: list[Sample] = []

    async def run(self, on_sample: Callable[[Sample], None]) -> None:
        """Take samples for ever; times count from the call."""
        self._began_s = time.monotonic()
        while True:
            sample = await self._take()
            self.samples.append(sample)
            on_sample(sample)
            await asyncio.sleep(INTERVAL_S)

    async def counters(self) -> Counters:
        """Read the counters that the workers wrote last, at most a second ago."""
        found = Counters()
        for status in await self._statuses():
            counters, engine = status["counters"], status["engine"] or {}
            found = Counters(
                found.tokens_logged + counters["tokens_logged"],
                found.log_entries + counters["log_entries"],
                found.log_calls + counters["log_calls"],
                found.preemptions + counters["preemptions"],
                found.peak_running + counters["peak_running"],
                found.prompt_tokens + engine.get("prompt_tokens_total", 0),
                found.cached_tokens + engine.get("cached_tokens_total", 0),
                found.preempted_tokens + engine.get("preempted_tokens_total", 0),
            )
        return found

    async def final_counters(self, num_tokens: int, timeout_s: float = 3.0) -> Counters:
        """Read the counters once the workers have written them after the last of the tokens."""
        deadline = time.monotonic() + timeout_s
        while (found := await self.counters()).tokens_logged < num_tokens:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(INTERVAL_S)
        return found

    async def _take(self) -> Sample:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(self._keys.of("load"), ["jobs", "tokens"])
            pipe.info("memory")
            (jobs, tokens), memory = await pipe.execute()
        engines = [status["engine"] for status in await self._statuses() if status["engine"]]
        num_pages = sum(engine["num_pages"] - _SCRATCH_PAGES for engine in engines)
        num_free = sum(engine["free_pages"] for engine in engines)
        num_cached = sum(engine["evictable_pages"] for engine in engines)
        return Sample(
            at_s=time.monotonic() - self._began_s,
            waiting_jobs=int(jobs or 0),
            waiting_tokens=int(tokens or 0),
            running=sum(engine["num_running"] for engine in engines),
            pages_used=num_pages - num_free - num_cached,
            pages_cached=num_cached,
            pages_total=num_pages,
            server_bytes=int(memory["used_memory"]),
        )

    async def _statuses(self) -> list[dict[str, dict[str, int]]]:
        # By its types it may not be awaitable.
        found: Any = self._redis.smembers(self._keys.of("workers"))
        names: set[bytes] = await found
        if not names:
            return []
        keys = [self._keys.of("status", name.decode()) for name in sorted(names)]
        return [json.loads(value) for value in await self._redis.mget(keys) if value]
