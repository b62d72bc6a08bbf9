"""The jobs of a pool that have not ended, read from where they wait or are held; no key is scanned.

Lanes, `front` and the suspects have those that wait, `held` of each worker those that run, `due`
those that are delayed, `ending` those whose end is being written. Each is read up to a bound, so
that a look at a pool of a million jobs costs the server as little as one at a pool of a thousand.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.pool_status import server_ms
from tokenbus.producer.contract.address import JobAddress, check_name
from tokenbus.producer.contract.keys import NUM_PRIORITIES
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.scripts.replies import JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys
    from tokenbus.producer.scripts import Scripts

MAX_LISTED = 1000
# Entries of one stream, members of one set, that are looked at for those of a tenant.
_MAX_LOOKED = 5000
_PAGE = 500
# Records of one round trip at least, where there are as many.
_MIN_READ = 64
# Tenants whose lanes are read in one round trip.
_LANES_TOGETHER = 16
LISTED_STATES = (JobState.HELD, JobState.WAITING, JobState.DELAYED, JobState.ENDING)
_FIELDS = ("state", "tenant", "priority", "owner", "attempts", "created", "prompt", "output", "n")

Places = AsyncGenerator[str, None]


@dataclass(frozen=True, slots=True)
class ListedJob:
    """A job that has not ended; `age_s` counts from its acceptance, by the server's clock.

    `worker` is empty unless it is held; `tokens` is what it may come to, prompt and output.
    """

    job_id: str
    tenant: str
    state: JobState
    priority: int
    worker: str
    attempts: int
    age_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class JobList:
    """Jobs of a pool; `is_whole` is false where there may be more than were listed."""

    jobs: tuple[ListedJob, ...]
    is_whole: bool


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Which jobs are listed: those of a tenant, of its shares too, with ids of a kind."""

    tenant: str | None
    with_shares: bool
    is_wanted: Callable[[str], bool] | None

    def has(self, name: str) -> bool:
        """Tell whether a job is listed, by the text of its address."""
        address = JobAddress.parse(name)
        if not self.has_tenant(address.tenant):
            return False
        return self.is_wanted is None or self.is_wanted(address.job_id)

    def has_tenant(self, tenant: str) -> bool:
        """Tell whether jobs of a tenant, as the queue knows it, may be listed."""
        if self.tenant is None or tenant == self.tenant:
            return True
        return self.with_shares and tenant.startswith(f"{self.tenant}/")


async def list_jobs(
    scripts: Scripts,
    *,
    tenant: str | None = None,
    states: Sequence[str | JobState] = LISTED_STATES,
    limit: int = 100,
    with_shares: bool = False,
    is_wanted: Callable[[str], bool] | None = None,
) -> JobList:
    """List jobs that have not ended: held ones, then in the order of the queue, then the others.

    Args:
        with_shares: the tenant's shares, tenants named `<tenant>/…` in the queue, have jobs of it
            too.
        is_wanted: of a job's id, whether it is listed; all are where it is None.
    Raises: RequestInvalid for a limit outside 1…1000, a state that no such job has, or a tenant
        that is no name.
    """
    if tenant is not None:
        check_name("tenant", tenant)
    if not 1 <= limit <= MAX_LISTED:
        raise RequestInvalid("limit", f"{limit} is outside 1…{MAX_LISTED}")
    wanted = _states(states)
    asked = _Wanted(tenant, with_shares, is_wanted)
    places = _Places(scripts.redis, scripts.keys, asked)
    found: dict[str, ListedJob] = {}
    now_ms = await server_ms(scripts.redis)
    for state in (state for state in LISTED_STATES if state in wanted):
        batch: list[str] = []
        async with aclosing(places.of(state)) as names:
            async for name in names:
                if not asked.has(name):
                    continue
                batch.append(name)
                if len(batch) >= min(_PAGE, max(_MIN_READ, limit + 1 - len(found))):
                    await _read(scripts, batch, found, state, now_ms)
                    batch = []
                if len(found) > limit:
                    break
        await _read(scripts, batch, found, state, now_ms)
        if len(found) > limit:
            break
    is_whole = len(found) <= limit and not places.has_stopped
    return JobList(tuple(found.values())[:limit], is_whole)


def _states(states: Sequence[str | JobState]) -> set[JobState]:
    known = {state.value: state for state in LISTED_STATES}
    for state in states:
        if state not in known:
            raise RequestInvalid("state", f"{state!a} is not {', '.join(known)}")
    return {known[state] for state in states}


class _Places:
    """Where jobs of a state lie; yields the texts of their addresses."""

    def __init__(self, redis: Redis, keys: Keys, wanted: _Wanted) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis
        self._keys = keys
        self._wanted = wanted
        self.has_stopped = False

    def of(self, state: JobState) -> Places:
        """Return the jobs that lie where those of a state do."""
        places = {
            JobState.HELD: self._held,
            JobState.WAITING: self._waiting,
            JobState.DELAYED: self._delayed,
            JobState.ENDING: self._ending,
        }
        return places[state]()

    async def _held(self) -> Places:
        members: set[bytes] = set()
        for name in ("workers", "workers1"):
            members |= await self._redis.smembers(self._keys.of(name))
        for worker in sorted(member.decode() for member in members):
            # As many as a worker has rows, some thousands at most.
            for job in await self._redis.hkeys(self._keys.of("held", worker)):
                yield job.decode()

    async def _waiting(self) -> Places:
        fronts = [self._keys.of("front", str(priority)) for priority in range(NUM_PRIORITIES)]
        for stream in (self._keys.of("suspects"), *fronts):
            async for job in self._entries(stream):
                yield job
        for priority in range(NUM_PRIORITIES):
            async for tenant in self._tenants(priority):
                async for job in self._entries(self._keys.lane(priority, tenant)):
                    yield job

    async def _tenants(self, priority: int) -> Places:
        """Yield the tenants with a lane of a priority, the one that is served next first."""
        if self._wanted.tenant is not None and not self._wanted.with_shares:
            yield self._wanted.tenant
            return
        key, at = self._keys.of("backlog", str(priority)), 0
        while page := await self._redis.zrange(key, at, at + _LANES_TOGETHER - 1):
            for name in page:
                if self._wanted.has_tenant(tenant := name.decode()):
                    yield tenant
            at += len(page)

    async def _entries(self, stream: str) -> Places:
        """Yield the jobs of a stream in its order, up to the bound."""
        after, looked = "-", 0
        while page := await self._redis.xrange(stream, after, "+", count=_PAGE):
            for _, fields in page:
                yield fields.get(b"job", b"").decode(errors="replace")
            looked += len(page)
            if looked >= _MAX_LOOKED:
                self.has_stopped = True
                return
            after = f"({page[-1][0].decode()}"

    async def _delayed(self) -> Places:
        async for member in self._members("due"):
            if member.startswith("n:"):
                yield member[2:]

    async def _ending(self) -> Places:
        async for member in self._members("ending"):
            yield member

    async def _members(self, name: str) -> Places:
        at = 0
        while page := await self._redis.zrange(self._keys.of(name), at, at + _PAGE - 1):
            for member in page:
                yield member.decode(errors="replace")
            at += len(page)
            if at >= _MAX_LOOKED:
                self.has_stopped = True
                return


async def _read(
    scripts: Scripts,
    names: Sequence[str],
    found: dict[str, ListedJob],
    state: JobState,
    now_ms: int,
) -> None:
    """Read the records of jobs and keep those that still are in a state."""
    new = [name for name in names if name not in found]
    if not new:
        return
    async with scripts.redis.pipeline(transaction=False) as pipe:
        for name in new:
            pipe.hmget(scripts.keys.of("job", name), list(_FIELDS))
        records = await pipe.execute()
    for name, record in zip(new, records, strict=True):
        job = _job(name, record, now_ms)
        if job is not None and job.state is state:
            found[name] = job


def _job(name: str, record: Sequence[bytes | None], now_ms: int) -> ListedJob | None:
    told: dict[str, Any] = {
        field: (value or b"").decode(errors="replace")
        for field, value in zip(_FIELDS, record, strict=True)
    }
    if told["state"] not in {state.value for state in LISTED_STATES}:
        return None
    created_ms = int(told["created"] or now_ms)
    return ListedJob(
        job_id=JobAddress.parse(name).job_id,
        tenant=told["tenant"],
        state=JobState(told["state"]),
        priority=int(told["priority"] or 0),
        worker=told["owner"],
        attempts=int(told["attempts"] or 0),
        age_s=max(0.0, (now_ms - created_ms) / 1000),
        tokens=int(told["prompt"] or 0) + int(told["n"] or 1) * int(told["output"] or 0),
    )
