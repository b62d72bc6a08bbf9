"""The load of a pool and its living workers, at one moment."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool at one moment; `workers` are the names of those whose lease runs.

    `outages` say of those that have no engine now why.
    """

    waiting_jobs: int
    waiting_tokens: int
    held_jobs: int
    workers: tuple[str, ...]
    outages: Mapping[str, str] = field(default_factory=dict)

    @property
    def ready(self) -> tuple[str, ...]:
        """Return the names of the living workers that can run jobs now."""
        return tuple(name for name in self.workers if name not in self.outages)


async def read_status(redis: Redis, keys: Keys) -> PoolStatus:
    """Read the load and the leases of a pool; costs one look per worker."""
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hmget(keys.of("load"), ["jobs", "tokens"])
        pipe.sunion([keys.of("workers"), keys.of("workers1")])
        (jobs, tokens), members = await pipe.execute()
    names = sorted(name.decode() for name in members)
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.exists(keys.of("alive", name))
            pipe.hlen(keys.of("held", name))
            pipe.get(keys.of("status", name))
        replies = await pipe.execute()
    lives = [name for name, alive in zip(names, replies[::3], strict=True) if alive]
    gauges = dict(zip(names, replies[2::3], strict=True))
    return PoolStatus(
        waiting_jobs=int(jobs or 0),
        waiting_tokens=int(tokens or 0),
        held_jobs=sum(replies[1::3]),
        workers=tuple(lives),
        outages={name: why for name in lives if (why := _outage(gauges[name])) is not None},
    )


def _outage(gauges: bytes | None) -> str | None:
    """Say why a worker cannot run jobs now; None if it can, or does not tell."""
    told = json.loads(gauges) if gauges else {}
    if told.get("ready", True):
        return None
    outage = told.get("outage") or {}
    return (
        f"no engine: {outage.get('reason', 'it has ended')} ({outage.get('cause', 'exit')},"
        f" {outage.get('num_in_a_row', 0)} in a row)"
    )
