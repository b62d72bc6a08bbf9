"""Workers and jobs for tests: the protocol by hand, without an engine."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from patience import PATIENCE_S

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.events import Event, Finish
from tokenbus.producer.contract.new_job import NewJob
from tokenbus.producer.contract.result import build_result
from tokenbus.producer.scripts import Append, Bounds, Budget, End, Scripts, Takeover
from tokenbus.producer.scripts.completing import Completed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.scripts.replies import (
        HeldEntry,
        LogReply,
        LogStatus,
        Orphan,
        Pulled,
        Refused,
        Submitted,
    )

T = TypeVar("T", Append, End)
PAGE_SIZE = 16
TOTAL_PAGES = 1000
WIDE = Bounds(tenant_tokens=10**9, pool_tokens=10**9)


def a_job(job_id: str = "", **fields: object) -> NewJob:
    """Make a job of 32 prompt and 16 output tokens: three pages."""
    chosen: dict[str, object] = {
        "job_id": job_id or f"j-{uuid.uuid4().hex[:8]}",
        "tenant": "acme",
        "priority": 1,
        "prompt_tokens": 32,
        "output_tokens": 16,
        "n": 1,
        "request": '{"v":1,"prompt":"x"}',
        "digest": "d",
    }
    return NewJob(**(chosen | fields))  # type: ignore[arg-type]  # fields are checked by the test


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask the server until a condition holds that it announces to nobody."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 -- nothing in this process can signal it
            await asyncio.sleep(0.01)


def raw(scripts: Scripts) -> Any:
    """Return the server's client untyped, for commands whose types redis-py states wrongly."""
    return scripts.redis


async def submit(scripts: Scripts, *jobs: NewJob) -> list[Submitted | Refused]:
    """Submit jobs under bounds that never bind."""
    return [await scripts.queue.submit(job, WIDE) for job in jobs]


async def first_step(scripts: Scripts, job_id: str, finish: str, tokens: int) -> None:
    """Take the first step of a completion alone, and charge so many tokens."""
    [why] = await scripts.completion.mark_done(
        [replace(Completed.of(job_id, finish), actual=tokens)]
    )
    assert not why


def text_of(start: int, to: int) -> str:
    """Return the text that token indices stand for in these tests: four characters each."""
    return "".join(f"{index:03d} " for index in range(start, to + 1))


def tokens(job_id: str, epoch: int, start: int, to: int) -> Append:
    """Make the entry of token indices `start` to `to`."""
    ids = range(start, to + 1)
    return Append(
        job_id, epoch, 0, start, to, text_of(start, to), list(ids), [4 * index for index in ids]
    )


@dataclass(slots=True, eq=False)
class StubWorker:
    """Follows the protocol one call at a time, as a test tells it to.

    It publishes to the clients of the jobs that it pulls; one of an earlier release, `is_old`, does
    not.
    """

    scripts: Scripts
    name: str = field(default_factory=lambda: f"w-{uuid.uuid4().hex[:8]}")
    serial: int = 0
    is_old: bool = False
    listens: dict[str, str] = field(default_factory=dict)

    async def reconcile(self, ttl_ms: int = 60_000, pages: int = TOTAL_PAGES) -> list[HeldEntry]:
        """Take a new serial and learn what is held."""
        self.serial += 1
        renewal = await self.scripts.lease.reconcile(
            self.name, self.serial, ttl_ms, pages, PAGE_SIZE
        )
        return renewal.held

    async def pull(self, pages: int = TOTAL_PAGES, max_jobs: int = 64, **budget: object) -> Pulled:
        """Pull under a budget of `pages`."""
        made = Budget(pages, PAGE_SIZE, TOTAL_PAGES, max_jobs, **budget)  # type: ignore[arg-type]
        found = await self.scripts.lease.pull(self.name, self.serial, made)
        if not self.is_old:
            self.listens |= {job.job_id: job.listen for job in found.jobs if job.listen}
        return found

    async def start(self, job_id: str, epoch: int) -> LogReply:
        """Take a job's log over."""
        [reply] = await self.scripts.log.takeover([Takeover(job_id, epoch, self.name)])
        return reply

    async def append(self, job_id: str, epoch: int, start: int, to: int) -> LogReply:
        """Log tokens `start` to `to`."""
        item = self._heard(tokens(job_id, epoch, start, to))
        [reply] = await self.scripts.log.append([item])
        return reply

    async def end(self, job_id: str, epoch: int, last: int, reason: str = "stop") -> LogReply:
        """Commit a job after its token `last`."""
        item = self._heard(owned_end(job_id, epoch, last, reason))
        [reply] = await self.scripts.log.end([item])
        return reply

    def _heard(self, item: T) -> T:
        """Let the client that has submitted the job hear what is written."""
        return replace(item, listen=self.listens.get(item.job_id, ""))

    async def run(self, job_id: str, epoch: int, last: int) -> LogStatus:
        """Start a job, log its tokens one by one from the log's end on, and commit it."""
        logged = (await self.start(job_id, epoch)).last
        for index in range(logged + 1, last + 1):
            await self.append(job_id, epoch, index, index)
        return (await self.end(job_id, epoch, last)).status

    async def run_all(self, job_ids: Sequence[str], last: int) -> None:
        """Start jobs at epoch 1, log their tokens in turn and commit them, many in a call."""
        await self.scripts.log.takeover([Takeover(job_id, 1, self.name) for job_id in job_ids])
        for index in range(1, last + 1):
            await self.append_all(job_ids, index)
        await self.end_all(job_ids, last)

    async def append_all(self, job_ids: Sequence[str], index: int) -> None:
        """Log one token of each job, at epoch 1."""
        items = [self._heard(tokens(job_id, 1, index, index)) for job_id in job_ids]
        await self.scripts.log.append(items)

    async def end_all(self, job_ids: Sequence[str], last: int) -> None:
        """Commit jobs after their token `last`, at epoch 1."""
        await self.scripts.log.end([self._heard(owned_end(job_id, 1, last)) for job_id in job_ids])

    async def die(self) -> None:
        """Lose the lease as a dead worker does."""
        await self.scripts.redis.delete(self.scripts.keys.of("alive", self.name))


def owned_end(job_id: str, epoch: int, last: int, reason: str = "stop") -> End:
    """Make the owner's end of a job with `last` tokens."""
    finish = Finish(reason, Usage(32, 0, last), None, (reason,))
    token_events = [
        Event(job_id, epoch, 0, i, i, text_of(i, i), (i,), (4 * i,)) for i in range(1, last + 1)
    ]
    result = build_result(job_id, epoch, token_events, finish)
    return End(job_id, epoch, last, finish.dump(), result.dump())


async def pulled(scripts: Scripts, job_id: str) -> StubWorker:
    """Submit a job and let a new worker pull it, at epoch 1."""
    await submit(scripts, a_job(job_id))
    worker = StubWorker(scripts)
    await worker.reconcile()
    [job] = (await worker.pull()).jobs
    if (job.job_id, job.epoch) != (job_id, 1):
        raise AssertionError(f"pulled {job.job_id} at epoch {job.epoch}")
    return worker


async def indices(scripts: Scripts, job_id: str) -> list[int]:
    """Return every token index in a job's log, in order."""
    events = await scripts.log.events(job_id) or []
    return [index for event in events for index in range(event.start, event.to + 1)]


async def num_ends(scripts: Scripts, job_id: str) -> int:
    """Return the number of terminal entries in a job's log, 1 where its result is left of it."""
    events = await scripts.log.events(job_id)
    if events is None:
        return int(await scripts.log.result(job_id) is not None)
    return sum(event.finish is not None for event in events)


async def orphan_of(scripts: Scripts) -> Orphan:
    """Return the one job of a dead worker."""
    [orphan] = await scripts.lease.scan()
    return orphan


async def running(client: AsyncClient) -> tuple[StubWorker, str]:
    """Submit a job and start it at epoch 1; return its worker and its id."""
    job = await client.submit("x", max_tokens=1000)
    worker = StubWorker(client.scripts)
    await worker.reconcile()
    await worker.pull()
    await worker.start(job.job_id, 1)
    return worker, job.job_id
