"""The figures of a pool at one moment: what boards, metrics, autoscalers and `tokenbus top` show.

Plain reads, none of which grows with the number of waiting jobs; they need the rights of a
producer. The state of the workers is in the `PoolStatus` that comes with them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.backlog import DRAIN_FIELDS, Assumed, Backlog, DrainRate
from tokenbus.producer.client.pool_status import MAX_TENANTS, read_status
from tokenbus.producer.client.seats.seat_reader import read_seats
from tokenbus.producer.client.seats.seats import MAX_FOLLOWED
from tokenbus.producer.client.worker_status import WorkerPhase
from tokenbus.producer.contract.address import whole_tenant
from tokenbus.producer.contract.keys import NUM_PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis.asyncio import Redis

    from tokenbus.producer.client.pool_status import PoolStatus
    from tokenbus.producer.client.seats.seats import Seats
    from tokenbus.producer.client.worker_status import PageFigures, WorkerStatus
    from tokenbus.producer.contract.keys import Keys

_NOTHING_SHOWN = Assumed()


@dataclass(frozen=True, slots=True)
class PriorityFigures:
    """The jobs of one priority; tokens are prompt plus the most that may be generated.

    `oldest_age_s` is that of the job that has waited longest, None where none waits.
    """

    priority: int
    waiting_jobs: int
    waiting_tokens: int
    held_jobs: int
    oldest_age_s: float | None


@dataclass(frozen=True, slots=True)
class LaneFigures:
    """The jobs of one tenant at one priority, those of its shares among them.

    What was handed back counts as none of them.
    """

    priority: int
    tenant: str
    waiting_jobs: int
    held_jobs: int
    oldest_age_s: float | None


@dataclass(frozen=True, slots=True)
class PoolFigures:
    """The figures of a pool.

    `priorities` are all three, in order, and add up to the pool. `lanes` are those of at most 32
    tenants a priority, the ones with most jobs first; `tenant_waiting_tokens` are of the same
    tenants over all priorities. `backlog` is what waits and is due, `rate` how fast workers take
    it, None before any has. `seats` are those of the ready workers, None where nothing waits, too
    many do to follow each, or too little was seen. `model` is that of most workers, or of the last
    that lived.
    """

    pool: str
    at_ms: int
    model: str
    status: PoolStatus
    priorities: tuple[PriorityFigures, ...]
    lanes: tuple[LaneFigures, ...]
    tenant_waiting_tokens: Mapping[str, int]
    backlog: Backlog
    rate: DrainRate | None
    assumed: Assumed
    seats: Seats | None = None

    @property
    def drain_tokens_per_s(self) -> float | None:
        """Return how fast the workers take jobs from a backlog, as of the last; None before any."""
        if self.rate is None:
            return None
        return self.rate.tokens_per_s * (len(self._ready) or self.rate.num_workers)

    @property
    def seconds_of_backlog(self) -> float:
        """Return the time until the last job that waits will be begun.

        It goes by the seats of the workers that are ready or start, as they fall free; where these
        are not known or very many jobs wait, by the rate; before there is one, by what is assumed.
        A delayed job counts from the minute of its time on.
        """
        backlog, num_ready = self.backlog, len(self._ready)
        if not backlog.jobs:
            return 0.0
        starting_for_s = [each.uptime_s or 0.0 for each in self.status.starting]
        if self.rate is None:
            return self.assumed.seconds_until_begun(backlog.tokens, num_ready, starting_for_s)
        if self.seats is None:
            return self.rate.seconds_until_begun(backlog.work, num_ready, starting_for_s)
        ready_in_s = self.rate.ready_in_s(num_ready, starting_for_s)
        return self.seats.seconds_until_begun(backlog.jobs, backlog.output_tokens, ready_in_s)

    @property
    def worker_seconds_of_backlog(self) -> float:
        """Return how long one ready worker would be at what waits if it were alone."""
        if self.rate is None:
            return self.backlog.tokens / self.assumed.tokens_per_s
        return self.backlog.work / self.rate.work_per_s

    @property
    def _ready(self) -> tuple[WorkerStatus, ...]:
        return _ready(self.status)

    @property
    def workers(self) -> tuple[WorkerStatus, ...]:
        """Return the workers: those that pull, those without an engine, and those that start."""
        return (*self.status.details, *self.status.starting)

    @property
    def pages(self) -> PageFigures | None:
        """Return the pages of all workers together, None where none tells of its own."""
        told = [worker.pages for worker in self.status.details if worker.pages is not None]
        return sum(told[1:], told[0]) if told else None

    @property
    def generated_tokens_per_s(self) -> float:
        """Return the tokens per second that all workers generate now."""
        return sum(worker.tokens_per_s or 0.0 for worker in self.status.details)

    @property
    def prompt_tokens_per_s(self) -> float:
        """Return the prompt tokens per second that all workers take in now, cached ones too."""
        return sum(worker.prompt_tokens_per_s or 0.0 for worker in self.status.details)

    @property
    def oldest_age_s(self) -> float:
        """Return how long the job waits that has waited longest, 0 where none does."""
        return max((job.age_s for job in self.status.oldest), default=0.0)


async def read_figures(
    redis: Redis, keys: Keys, *, assumed: Assumed = _NOTHING_SHOWN
) -> PoolFigures:
    """Read the figures of a pool. Raises: what redis raises."""
    status = await read_status(redis, keys, with_oldest=True)
    priorities = range(NUM_PRIORITIES)
    async with redis.pipeline(transaction=False) as pipe:
        by_priority = [f"{unit}:{p}" for p in priorities for unit in _UNITS]
        pipe.hmget(keys.of("load"), ["prompts", *by_priority])
        pipe.hmget(keys.of("drain"), ["model", *DRAIN_FIELDS])
        pipe.hgetall(keys.of("later"))
        for priority in priorities:
            pipe.hgetall(keys.of("holding", str(priority)))
            pipe.zrange(keys.of("backlog", str(priority)), 0, MAX_TENANTS - 1)
        (prompts, *load), (model, *drain), later, *replies = await pipe.execute()
    held = [{name.decode(): int(n) for name, n in reply.items()} for reply in replies[::2]]
    known = [
        {*held[p], *(name.decode(errors="replace") for name in replies[2 * p + 1])}
        | {job.tenant for job in status.oldest if job.priority == p}
        for p in priorities
    ]
    lanes = await _lanes(redis, keys, status, held, known)
    backlog, seats = _due(status, int(prompts or 0), later), None
    if 0 < backlog.jobs <= MAX_FOLLOWED:
        held_jobs = {each.name: each.held_jobs for each in _ready(status)}
        seats = await read_seats(redis, keys, held_jobs, status.at_ms)
    return PoolFigures(
        pool=keys.pool,
        at_ms=status.at_ms,
        model=_model(status) or (model or b"").decode(errors="replace"),
        status=status,
        priorities=tuple(
            PriorityFigures(
                priority,
                waiting_jobs=int(load[2 * priority] or 0),
                waiting_tokens=int(load[2 * priority + 1] or 0),
                held_jobs=sum(held[priority].values()),
                oldest_age_s=_oldest(status, priority),
            )
            for priority in priorities
        ),
        lanes=lanes,
        tenant_waiting_tokens=await _waiting_tokens(redis, keys, lanes, known),
        backlog=backlog,
        rate=DrainRate.read(drain),
        assumed=assumed,
        seats=seats,
    )


_UNITS = ("jobs", "tokens")


def _ready(status: PoolStatus) -> tuple[WorkerStatus, ...]:
    """Return the workers that pull: each with a lease, though it may still tell that it starts."""
    away = (WorkerPhase.DOWN, WorkerPhase.DRAINING)
    return tuple(each for each in status.details if each.phase not in away)


async def _waiting_tokens(
    redis: Redis, keys: Keys, lanes: Iterable[LaneFigures], known: Iterable[set[str]]
) -> Mapping[str, int]:
    """Return the waiting tokens of the tenants of lanes, those of their shares among them."""
    # Untyped: redis-py states some of its types wrongly.
    untyped: Any = redis
    shown = {lane.tenant for lane in lanes}
    tenants = sorted(name for name in set().union(*known) if whole_tenant(name) in shown)
    counts: Counter[str] = Counter()
    if tenants:
        tokens = await untyped.hmget(keys.of("load"), [f"tenant:{name}" for name in tenants])
        for name, found in zip(tenants, tokens, strict=True):
            counts[whole_tenant(name)] += int(found or 0)
    return counts


async def _lanes(
    redis: Redis,
    keys: Keys,
    status: PoolStatus,
    held: list[dict[str, int]],
    known: list[set[str]],
) -> tuple[LaneFigures, ...]:
    """Count the jobs of the tenants that have most of them, priority by priority."""
    names = [(priority, name) for priority, each in enumerate(known) for name in each]
    lengths: list[int] = []
    if names:
        async with redis.pipeline(transaction=False) as pipe:
            for priority, name in names:
                pipe.xlen(keys.lane(priority, name))
            lengths = await pipe.execute()
    waiting: Counter[tuple[int, str]] = Counter()
    running: Counter[tuple[int, str]] = Counter()
    for (priority, name), length in zip(names, lengths, strict=True):
        lane = (priority, whole_tenant(name))
        waiting[lane] += length
        running[lane] += held[priority].get(name, 0)
    oldest: dict[tuple[int, str], float] = {}
    for job in status.oldest:
        lane = (job.priority, whole_tenant(job.tenant))
        oldest[lane] = max(job.age_s, oldest.get(lane, 0.0))
    lanes = []
    for priority in range(NUM_PRIORITIES):
        found = [
            LaneFigures(*lane, waiting[lane], running[lane], oldest.get(lane))
            for lane in waiting
            if lane[0] == priority
        ]
        found.sort(key=lambda lane: (-lane.waiting_jobs, -lane.held_jobs, lane.tenant))
        lanes += found[:MAX_TENANTS]
    return tuple(lanes)


def _due(status: PoolStatus, prompts: int, later: Mapping[bytes, bytes]) -> Backlog:
    """Return what waits without the jobs delayed past the minute that it is."""
    counts = Counter(jobs=status.waiting_jobs, tokens=status.waiting_tokens, prompts=prompts)
    for field, count in later.items():
        unit, _, minute = field.decode().partition(":")
        if int(minute) > status.at_ms // 60_000:
            counts[unit] -= int(count)
    return Backlog(max(0, counts["jobs"]), max(0, counts["tokens"]), counts["prompts"])


def _oldest(status: PoolStatus, priority: int) -> float | None:
    ages: Iterable[float] = (job.age_s for job in status.oldest if job.priority == priority)
    return max(ages, default=None)


def _model(status: PoolStatus) -> str:
    """Return the model of most workers, empty where none tells of one."""
    models = Counter(each.model for each in (*status.details, *status.starting) if each.model)
    return min(models, key=lambda name: (-models[name], name)) if models else ""
