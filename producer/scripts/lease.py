"""Scripts of the pool that workers use: pull, lease, hand back.

It is one file because each call is one step of the same life: that of a job with its worker.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tokenbus.producer.scripts.evidence import Crowd, Evidence
from tokenbus.producer.scripts.queue import read_ending
from tokenbus.producer.scripts.replies import (
    HeldEntry,
    Orphan,
    Pulled,
    PulledJob,
    PullStatus,
    RequeueStatus,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from tokenbus.producer.contract.keys import Keys
    from tokenbus.producer.scripts.evidence import Crash, Passed
    from tokenbus.producer.scripts.runner import ScriptRunner
    from tokenbus.producer.scripts.source import Argument

# In the record: 1 speaks against a job, 2 lets it run alone, 3 ends it.
MAX_ATTEMPTS = 3
MAX_ESTIMATES = 64


@dataclass(frozen=True, slots=True)
class Renewal:
    """What a worker holds, and when its lease was renewed: ms of the server's time."""

    held: list[HeldEntry]
    at_ms: int


@dataclass(frozen=True, slots=True)
class Budget:
    """What a worker has room for.

    `pages` may be spent now; `total_pages` is all a job could ever get here. `expected_output`
    gives tokens per choice of a lane (`<priority>:<tenant>`), `default_output` of all others; the
    pull counts min(max_tokens, that). `max_rows` bounds the choices of all jobs together.
    `cached` names the prefixes that lie in the cache, each with the tokens that all jobs of it
    share: they are not counted, but for the first job of an `idle` one, whose pages nobody holds.
    `lost_prefixes` fell out of the cache.
    With `affinity_ms` the pull leaves jobs of a prefix that lies in another living worker's cache
    to that one: for so long where it would find nothing else, else for a fifth of what they have
    waited if that is longer. 0 turns that off.
    `take_head_of_line` lets one job pass that does not fit: false while the worker has one. A job
    larger than every live worker fails after `too_large_after_ms`. Jobs of a class after
    `last_priority` are not looked at. `crowd` says which suspects the worker holds.
    """

    pages: int
    page_size: int
    total_pages: int
    max_jobs: int
    take_head_of_line: bool = True
    too_large_after_ms: int = 30_000
    default_output: int = 1_000_000
    last_priority: int = 2
    expected_output: Mapping[str, int] = field(default_factory=dict)
    cached: Mapping[str, int] = field(default_factory=dict)
    idle: Collection[str] = ()
    lost_prefixes: Sequence[str] = ()
    affinity_ms: int = 0
    max_rows: int = 1_000_000
    crowd: Crowd = field(default_factory=Crowd)


class LeaseScripts:
    """Typed calls of one pool's workers. Every method raises what `ScriptRunner.run` raises."""

    def __init__(self, runner: ScriptRunner, keys: Keys) -> None:
        self._runner = runner
        self._keys = keys

    async def pull(self, worker: str, serial: int, budget: Budget) -> Pulled:
        """Take as many jobs as the budget's pages allow, fairest first, and own them.

        Front lists come first, then priorities in order, then the tenant with the least virtual
        time. Raises each job's epoch by one and charges its tenant once. Answers `reconcile`
        unless `serial` is the one stored by the last `reconcile` (R8).
        """
        lists: list[Argument] = []
        for pairs in (budget.expected_output, budget.cached):
            chosen = list(pairs.items())[:MAX_ESTIMATES]
            lists.append(len(chosen))
            for name, tokens in chosen:
                lists += (name, tokens)
        for names in (budget.idle, budget.lost_prefixes):
            lists += (len(names), *names)
        crowd = budget.crowd
        lists += (crowd.num_suspects, crowd.least_ride, crowd.num_open)
        reply = await self._runner.run(
            "pull",
            self._keys.prefix,
            worker=worker,
            serial=serial,
            free_pages=budget.pages,
            page_size=budget.page_size,
            total_pages=budget.total_pages,
            max_jobs=budget.max_jobs,
            may_overflow=budget.take_head_of_line,
            default_output=budget.default_output,
            too_large_ms=budget.too_large_after_ms,
            last_class=budget.last_priority,
            affinity_ms=budget.affinity_ms,
            free_rows=budget.max_rows,
            lists=lists,
        )
        status, jobs, endings, *rest = reply
        # A pull that looked at nothing says less.
        retry_ms = rest[0] if rest else 0
        is_left = len(rest) < 2 or rest[1]
        return Pulled(
            PullStatus(status.decode()),
            tuple(_pulled(job) for job in jobs),
            tuple(read_ending(ending) for ending in endings),
            int(retry_ms),
            bool(is_left),
        )

    async def renew(self, worker: str, ttl_ms: int, total_pages: int, page_size: int) -> Renewal:
        """Prolong the lease and return everything the server says the worker holds (R6)."""
        return await self._lease(worker, "", ttl_ms, total_pages, page_size)

    async def reconcile(
        self, worker: str, serial: int, ttl_ms: int, total_pages: int, page_size: int
    ) -> Renewal:
        """Renew, and make `serial` the only one that pulls; first call of every worker (R7, R8).

        `serial` grows with each call, so that a late one of before cannot bring its own back.
        """
        return await self._lease(worker, serial, ttl_ms, total_pages, page_size)

    async def _lease(
        self, worker: str, serial: int | Literal[""], ttl_ms: int, total_pages: int, page_size: int
    ) -> Renewal:
        *pairs, now_ms = await self._runner.run(
            "renew",
            self._keys.prefix,
            worker=worker,
            serial=serial,
            ttl_ms=ttl_ms,
            capacity=total_pages * page_size,
        )
        held, flags = (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in pairs)
        entries = [
            HeldEntry(job.decode(), int(epoch), flags.get(job, b"").decode())
            for job, epoch in held.items()
        ]
        return Renewal(entries, int(now_ms))

    async def requeue(
        self,
        worker: str,
        job_id: str,
        epoch: int,
        *,
        marker_epoch: int = 0,
        num_logged: int = 0,
        crashed: bool = False,
        max_attempts: int = MAX_ATTEMPTS,
        crash: Crash | None = None,
        passed: Passed = "",
        why: str = "",
        lived: str = "",
    ) -> RequeueStatus:
        """Give a held job back to the front, refused unless held at `epoch` (R5).

        `marker_epoch` is the highest epoch the caller saw in the log. `crash` says what the job is
        blamed for; `crashed` alone, that a worker vanished with it. `passed` comes first: what it
        has passed here counts no more. A flagged job, or one found guilty, goes to `ending`. Its
        timeline gets `why` a job goes back that nothing has died with, and what was `lived` here.
        """
        reply = await self._runner.run(
            "requeue",
            self._keys.prefix,
            worker=worker,
            job=job_id,
            epoch=epoch,
            marker=marker_epoch,
            logged=num_logged,
            crashed=crashed or crash is not None,
            max_attempts=max_attempts,
            cause=crash.cause if crash else "",
            place=crash.place if crash else 0,
            since=crash.since if crash else 0,
            suspected=crash.num_suspected if crash else 1,
            company=crash.num_beside if crash else 0,
            beside=crash is not None and crash.is_beside,
            sound=crash is None or crash.is_sound,
            passed=passed,
            told=[why, lived] if why or lived else [],
        )
        return RequeueStatus(reply.decode())

    async def unpull(
        self,
        worker: str,
        job_id: str,
        epoch: int,
        prompt_tokens: int,
        *,
        loses_prefix: bool = False,
    ) -> RequeueStatus:
        """Hand back a fresh job that tokenised to more than was counted, as if never pulled.

        The charge is refunded and the exact prompt length stored; only before the first token.
        One that shares less than jobs of its prefix do `loses_prefix`: it counts in full then.
        """
        reply = await self._runner.run(
            "unpull",
            self._keys.prefix,
            worker=worker,
            job=job_id,
            epoch=epoch,
            prompt=prompt_tokens,
            loses_prefix=loses_prefix,
        )
        return RequeueStatus(reply.decode())

    async def leave(self, worker: str) -> None:
        """Tell the pool that a worker pulls no more, so that no job is left to its cache."""
        await self._runner.run("leave", self._keys.prefix, worker=worker)

    async def scan(self, *, limit: int = 256) -> list[Orphan]:
        """List jobs of workers without a lease, innocents before suspects, by priority.

        Workers without lease and jobs are struck off in the same call (R13).
        """
        orphans, _ = await self.scan_workers(limit=limit)
        return orphans

    async def scan_workers(self, *, limit: int = 256) -> tuple[list[Orphan], list[str]]:
        """Do the same, and name the workers that were struck off without having said good-bye."""
        answer = await self._runner.run("scan", self._keys.prefix, limit=limit)
        struck = [worker.decode() for worker, job, *_ in answer if not job]
        reply = [row for row in answer if row[1]]
        num_held = Counter(worker for worker, *_ in reply)
        orphans = [
            Orphan(
                worker.decode(),
                job.decode(),
                int(epoch),
                int(priority),
                int(attempts),
                num_held[worker],
            )
            for worker, job, epoch, priority, attempts in reply
        ]
        orphans.sort(key=lambda orphan: (orphan.attempts > 0, orphan.priority))
        return orphans, struck

    async def load(self) -> dict[str, int]:
        """Read the waiting tokens and jobs: `tokens`, `jobs`, and per priority and tenant."""
        reply: dict[bytes, bytes] = await self._runner.command("HGETALL", self._keys.of("load"))
        return {name.decode(): int(value) for name, value in reply.items()}


def _pulled(reply: list[Any]) -> PulledJob:
    """Read one pulled job, in the order in which `take` of pull.lua tells of it."""
    (
        job_id,
        epoch,
        attempts,
        priority,
        tenant,
        pages,
        head_of_line,
        num_logged,
        remaining_ms,
        request,
        age_ms,
        prefix,
        shared_pages,
        num_choices,
        packed,
        listen,
        model,
    ) = reply
    return PulledJob(
        job_id=job_id.decode(),
        epoch=int(epoch),
        attempts=int(attempts),
        priority=int(priority),
        tenant=tenant.decode(),
        pages=int(pages),
        head_of_line=bool(head_of_line),
        num_logged=int(num_logged),
        remaining_ms=None if int(remaining_ms) < 0 else int(remaining_ms),
        request=request,
        age_ms=int(age_ms),
        prefix=prefix.decode(errors="replace"),
        shared_pages=int(shared_pages),
        num_choices=int(num_choices),
        evidence=Evidence.parse(packed.decode(), int(attempts)) if packed or attempts else None,
        listen=listen.decode(),
        model=model.decode(errors="replace"),
    )
