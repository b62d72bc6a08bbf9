"""The load of a pool and its living workers, at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenbus.producer.client.worker_status import worker_status
from tokenbus.producer.contract.keys import NUM_PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis.asyncio import Redis

    from tokenbus.producer.client.worker_status import WorkerStatus
    from tokenbus.producer.contract.keys import Keys

# Tenants of a priority whose oldest job is told, those that are served next.
MAX_TENANTS = 32


@dataclass(frozen=True, slots=True)
class OldestJob:
    """The job that has waited longest of those of a priority and tenant, handed back ones first."""

    priority: int
    tenant: str
    job_id: str
    age_s: float


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A pool at one moment; `workers` are the names of those whose lease runs.

    `outages` say of those that have no engine now why. `paused_for_s` is None unless pulls take
    nothing. `oldest` is filled by `read_status` where it was asked for. `kept_bytes` are those of
    finished jobs, as of the last one; `dropped_jobs` counts those whose results were dropped for
    room and that are still known. `starting` are workers that load their model and pull no jobs
    yet; they are not among the others. `at_ms` is the server's time.
    """

    waiting_jobs: int
    waiting_tokens: int
    held_jobs: int
    workers: tuple[str, ...]
    outages: Mapping[str, str] = field(default_factory=dict)
    details: tuple[WorkerStatus, ...] = ()
    oldest: tuple[OldestJob, ...] = ()
    paused_for_s: float | None = None
    kept_bytes: int = 0
    dropped_jobs: int = 0
    starting: tuple[WorkerStatus, ...] = ()
    at_ms: int = 0

    @property
    def ready(self) -> tuple[str, ...]:
        """Return the names of the living workers that can run jobs now."""
        return tuple(name for name in self.workers if name not in self.outages)


async def read_status(redis: Redis, keys: Keys, *, with_oldest: bool = False) -> PoolStatus:
    """Read the load and the leases of a pool; costs one look per worker.

    `with_oldest` costs one more per priority and tenant with waiting jobs, 32 at most each.
    """
    async with redis.pipeline(transaction=False) as pipe:
        pipe.hmget(keys.of("load"), ["jobs", "tokens"])
        pipe.get(keys.of("paused"))
        pipe.smembers(keys.of("workers"))
        pipe.smembers(keys.of("workers1"))
        pipe.hget(keys.of("kept"), "bytes")
        pipe.llen(keys.of("dropped"))
        pipe.smembers(keys.of("starting"))
        (jobs, tokens), paused, members, old_members, kept, dropped, new = await pipe.execute()
    now_ms = await server_ms(redis)
    names = sorted(name.decode() for name in {*members, *old_members})
    new_names = sorted(name.decode() for name in new - members)
    async with redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.exists(keys.of("alive", name))
            pipe.hlen(keys.of("held", name))
            pipe.get(keys.of("status", name))
        for name in new_names:
            pipe.get(keys.of("status", name))
        replies = await pipe.execute()
    replies, new_replies = replies[: 3 * len(names)], replies[3 * len(names) :]
    rows = zip(names, replies[::3], replies[1::3], replies[2::3], strict=True)
    workers = [worker_status(name, held, gauges) for name, alive, held, gauges in rows if alive]
    return PoolStatus(
        waiting_jobs=int(jobs or 0),
        waiting_tokens=int(tokens or 0),
        held_jobs=sum(replies[1::3]),
        workers=tuple(worker.name for worker in workers),
        outages={worker.name: worker.outage for worker in workers if worker.outage is not None},
        details=tuple(workers),
        oldest=await _oldest(redis, keys, now_ms) if with_oldest else (),
        paused_for_s=None if paused is None else max(0.0, (now_ms - int(paused)) / 1000),
        kept_bytes=int(kept or 0),
        dropped_jobs=int(dropped),
        starting=tuple(
            worker_status(name, 0, gauges)
            for name, gauges in zip(new_names, new_replies, strict=True)
            if gauges
        ),
        at_ms=now_ms,
    )


async def _oldest(redis: Redis, keys: Keys, now_ms: int) -> tuple[OldestJob, ...]:
    """Look at the heads of what waits: of `front` and of the lanes, priority by priority."""
    async with redis.pipeline(transaction=False) as pipe:
        for priority in range(NUM_PRIORITIES):
            pipe.xrange(keys.of("front", str(priority)), count=MAX_TENANTS)
            pipe.zrange(keys.of("backlog", str(priority)), 0, MAX_TENANTS - 1)
        replies = await pipe.execute()
    streams = [
        (priority, tenant.decode())
        for priority in range(NUM_PRIORITIES)
        for tenant in replies[2 * priority + 1]
    ]
    async with redis.pipeline(transaction=False) as pipe:
        for priority, tenant in streams:
            pipe.xrange(keys.lane(priority, tenant), count=1)
        heads = await pipe.execute()
    found: dict[tuple[int, str], OldestJob] = {}
    handed_back = [
        (priority, entry) for priority in range(NUM_PRIORITIES) for entry in replies[2 * priority]
    ]
    waiting = [
        (priority, entry)
        for (priority, _), lane in zip(streams, heads, strict=True)
        for entry in lane
    ]
    for priority, (entry_id, fields) in [*handed_back, *waiting]:
        tenant = fields.get(b"tenant", b"").decode(errors="replace")
        job = fields.get(b"job", b"").decode(errors="replace").partition("@")[0]
        age_s = max(0.0, (now_ms - int(entry_id.split(b"-")[0])) / 1000)
        found.setdefault((priority, tenant), OldestJob(priority, tenant, job, age_s))
    return tuple(sorted(found.values(), key=lambda job: (job.priority, -job.age_s)))


async def server_ms(redis: Redis) -> int:
    """Return the server's time in milliseconds, by which everything that is stored goes."""
    seconds, micros = await redis.time()
    return int(seconds) * 1000 + int(micros) // 1000
