"""When a waiting job may start: what a pull brings is counted first, and nothing is overlooked."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from patience import PATIENCE_S, until_within
from workers.parts import PAGE_SIZE, JobParts, a_member, job_parts, page_budget_of
from workers.steps import step

from tokenbus.engine.types import Admission, EngineStats, SamplingParams
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.scripts.replies import Pulled, PulledJob, PullStatus
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.held.held_jobs import HeldJobs
from tokenbus.worker.held.prepared_job import PreparedJob
from tokenbus.worker.jobs.log_opening import LogOpener
from tokenbus.worker.jobs.prompt import PendingPrompt
from tokenbus.worker.messages.publishing import Taken
from tokenbus.worker.pool.arrivals import Arrivals
from tokenbus.worker.pool.pull_loop import PullLoop
from tokenbus.worker.pool.refusals import Refusals

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from tokenbus.producer.scripts import Budget
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.jobs.page_budget import PageBudget

NUM_PAGES = 8


class StubSession:
    """Is open, and makes every call at once."""

    async def opened(self) -> None:
        """Be open."""

    async def call(self, call: Callable[[], Awaitable[Any]], **_: object) -> Any:
        """Make a call."""
        return await call()


class StubLease:
    """Lets every pull in, and answers it with what it is given."""

    serial = 1

    def __init__(self, *answer: PulledJob) -> None:
        self._answer = answer
        self.offers: list[int] = []
        self.is_left = True

    @asynccontextmanager
    async def pulling(self) -> AsyncIterator[None]:
        """Let the caller in."""
        yield

    async def pull(self, _worker: str, _serial: int, budget: Budget) -> Pulled:
        """Bring the jobs."""
        self.offers.append(budget.max_rows)
        await asyncio.sleep(0)
        return Pulled(PullStatus.JOBS, self._answer, is_left=self.is_left)


class StubDoorbell:
    """Is silent, tells when somebody listens, and answers the pulls behind it with `answers`."""

    def __init__(self, listening: asyncio.Event, *answers: Pulled) -> None:
        self._listening = listening
        self._answers = list(answers)
        self.offers: list[Budget] = []
        self.is_closed = False

    async def wait(self, _wait_s: float) -> None:
        """Wait for ever."""
        self._listening.set()
        await asyncio.Event().wait()

    async def pull(self, wait_s: float, _serial: int, budget: Budget) -> Pulled:
        """Answer the pull, or wait for ever."""
        self.offers.append(budget)
        if not self._answers:
            await self.wait(wait_s)
        return self._answers.pop(0)

    async def close(self) -> None:
        """Note that nobody listens any more."""
        self.is_closed = True


class StubStarter:
    """Starts a waiting job that fits, and prepares nothing."""

    def __init__(self, page_budget: PageBudget) -> None:
        self._page_budget = page_budget
        self.started: list[str] = []

    def admit(self, job: HeldJob) -> None:
        """Note which job would start."""
        if self._page_budget.fits(job):
            self.started.append(job.job_id)

    async def tokenise(self, jobs: Sequence[HeldJob]) -> list[PendingPrompt]:
        """Read nothing."""
        return [PendingPrompt() for _ in jobs]

    def prepare(self, *_: object) -> None:
        """Leave a pulled job as it came."""


@dataclass(frozen=True, slots=True)
class PullBench:
    """A worker that pulls, but for its server and its engine."""

    member: PoolMember
    starter: StubStarter
    jobs: JobParts
    pull_loop: PullLoop
    lease: StubLease

    def take(self, pulled: PulledJob) -> HeldJob:
        """Hold a job that was pulled before."""
        return self.member.held_jobs.take(pulled)


def pull_bench(
    num_pages: int, *answer: PulledJob, num_rows: int = 8, doorbell: Any = None
) -> PullBench:
    """Make a worker of so many pages and rows; each pull brings `answer`."""
    lease: Any = StubLease(*answer)
    member = a_member(session=StubSession(), scripts=Mock(lease=lease), held_jobs=HeldJobs())
    page_budget = page_budget_of(member.held_jobs, num_pages, num_rows)
    stub = StubStarter(page_budget)
    starter: Any = stub
    jobs = job_parts(member, page_budget, starter)
    refusals = Refusals(member)
    silent: Any = StubDoorbell(asyncio.Event())
    arrivals = Arrivals(
        member,
        starter=starter,
        log_opener=LogOpener(starter, Mock(), Mock()),
        head_of_line=jobs.head_of_line,
        page_budget=page_budget,
        prefixes=jobs.prefixes,
        suspects=jobs.suspects,
        refusals=refusals,
    )
    pull_loop = PullLoop(
        member,
        engine=jobs.engine,
        doorbell=doorbell or silent,
        lease=lease,
        arrivals=arrivals,
        refusals=refusals,
        parking=jobs.parking,
        head_of_line=jobs.head_of_line,
        page_budget=page_budget,
        prefixes=jobs.prefixes,
        suspects=jobs.suspects,
    )
    return PullBench(member, stub, jobs, pull_loop, lease)


def pulled_job(job_id: str, epoch: int, pages: int, *, waits: bool = False) -> PulledJob:
    """Make a job of `pages` pages."""
    return PulledJob(
        job_id=job_id, epoch=epoch, attempts=0, priority=1, tenant="t", pages=pages,
        head_of_line=waits, num_logged=0, remaining_ms=None, request=b"", prefix="",
    )  # fmt: skip


def prepare(job: HeldJob, num_prompt_pages: int, max_tokens: int) -> None:
    """Let a job be tokenised."""
    prompt = (1,) * (num_prompt_pages * PAGE_SIZE)
    job.prepared = PreparedJob(
        JobRequest.build(token_ids=[1]), prompt, SamplingParams(max_tokens=max_tokens)
    )
    job.lengths = [0]


async def test_job_that_replaces_its_older_epoch_is_counted_before_a_waiting_one_starts() -> None:
    """A job unpulled as too big comes again before the answer to that is here.

    Its older self is dropped then, and the pages of that are its own: the job at the head of the
    line, which they would just make room for, goes on waiting.
    """
    again = pulled_job("again", 2, 3)
    bench = pull_bench(NUM_PAGES, again)
    bench.take(pulled_job("again", 1, 2))
    waiting = bench.take(pulled_job("waiting", 1, NUM_PAGES - 1, waits=True))
    prepare(waiting, 1, 96)
    async with asyncio.TaskGroup() as tasks:
        await bench.pull_loop.pull(tasks)
    assert bench.starter.started == []
    assert bench.member.held_jobs.get("again") is not None
    assert bench.jobs.page_budget.budget() == NUM_PAGES - again.pages


def test_waiting_job_starts_with_the_first_token_of_one_that_held_its_room() -> None:
    """Until its first token a job's prompt counts twice: its pages are taken and still promised.

    No job has to end for the one at the head of the line to fit then, and nothing else tells.
    """
    bench = pull_bench(2 * NUM_PAGES)
    engine_reports = bench.jobs.engine_reports(Mock(num_processes=0))
    running = bench.take(pulled_job("running", 1, 7))
    prepare(running, 6, PAGE_SIZE)
    running.taken = Taken(0, running.request_id, 0, [()], [None])
    running.publisher_link = Mock()
    running.move_to(Phase.RUNNING)
    waiting = bench.take(pulled_job("waiting", 1, 5, waits=True))
    prepare(waiting, 4, PAGE_SIZE)
    stats = EngineStats(2 * NUM_PAGES, 2 * NUM_PAGES - 6, 0, 1, 0)
    key = running.request_id
    admission = Admission(key, 6 * PAGE_SIZE, 0)
    engine_reports.take(step(admitted=[admission], stats=stats))
    assert bench.starter.started == []
    engine_reports.take(step(tokens={key: [300]}, stats=stats))
    assert bench.starter.started == ["waiting"]


async def test_nothing_is_pulled_where_only_the_first_class_runs_and_no_room_is() -> None:
    """A full worker looks only for what goes before something that runs, and nothing does."""
    bench = pull_bench(NUM_PAGES, pulled_job("more", 1, 1))
    urgent = PulledJob("urgent", 1, 0, 0, "t", NUM_PAGES, False, 0, None, b"")
    bench.take(urgent).move_to(Phase.RUNNING)
    async with asyncio.TaskGroup() as tasks:
        assert await bench.pull_loop.pull(tasks) is None
    assert len(bench.member.held_jobs) == 1


async def test_full_worker_lets_room_gather_before_it_pulls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of short jobs that end one by one each would otherwise be worth a pull of its own."""
    napping, is_over = asyncio.Event(), asyncio.Event()

    async def nap(_: float) -> None:
        napping.set()
        await is_over.wait()

    asleep = SimpleNamespace(**vars(asyncio) | {"sleep": nap})
    monkeypatch.setattr("tokenbus.worker.pool.pull_loop.asyncio", asleep)
    bench = pull_bench(640, num_rows=64)
    jobs = [bench.take(pulled_job(f"j{num}", 1, 1)) for num in range(64)]
    running = asyncio.create_task(bench.pull_loop.run())
    bench.member.held_jobs.drop(jobs[0])
    async with asyncio.timeout(PATIENCE_S):
        await napping.wait()
    for job in jobs[1:20]:
        await asyncio.sleep(0)
        bench.member.held_jobs.drop(job)
    assert bench.lease.offers == []
    is_over.set()
    await until_within(lambda: bool(bench.lease.offers), PATIENCE_S)
    running.cancel()
    assert bench.lease.offers[0] == 20


async def test_worker_with_room_pulls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No job of an idle pool waits for company."""
    monkeypatch.setattr("tokenbus.worker.pool.pull_loop.NAP_S", PATIENCE_S)
    bench = pull_bench(640, num_rows=64)
    for num in range(56):
        bench.take(pulled_job(f"j{num}", 1, 1))
    running = asyncio.create_task(bench.pull_loop.run())
    await until_within(lambda: bool(bench.lease.offers), PATIENCE_S)
    running.cancel()
    assert bench.lease.offers[0] == 8


async def test_idle_worker_sends_its_pull_along_with_the_wait() -> None:
    """A lone job is pulled when the bell rings, for half of what is free; what does not fit into
    that is pulled at once for all of it.
    """
    listening = asyncio.Event()
    doorbell: Any = StubDoorbell(listening, Pulled(PullStatus.FULL, ()))
    bench = pull_bench(NUM_PAGES, doorbell=doorbell)
    bench.lease.is_left = False
    pulling = asyncio.create_task(bench.pull_loop.run())
    async with asyncio.timeout(PATIENCE_S):
        await listening.wait()
    pulling.cancel()
    assert [(offer.pages, offer.take_head_of_line) for offer in doorbell.offers] == [
        (NUM_PAGES // 2, False)
    ] * 2
    assert bench.lease.offers == [8, 8]


@pytest.mark.parametrize("waits", [False, True], ids=["half_is_taken", "one_waits_for_room"])
async def test_busy_worker_looks_at_its_room_after_the_bell(waits: bool) -> None:
    """What ends while it waits is room for what rings, and first for the head of the line."""
    listening = asyncio.Event()
    doorbell: Any = StubDoorbell(listening)
    bench = pull_bench(NUM_PAGES, doorbell=doorbell)
    bench.lease.is_left = False
    bench.take(pulled_job("here", 1, NUM_PAGES // 2, waits=waits))
    pulling = asyncio.create_task(bench.pull_loop.run())
    async with asyncio.timeout(PATIENCE_S):
        await listening.wait()
    pulling.cancel()
    assert doorbell.offers == []


async def test_pull_that_left_nothing_is_followed_by_the_bell() -> None:
    """What comes later rings: a second pull would find nothing, beside the first steps."""
    listening = asyncio.Event()
    doorbell: Any = StubDoorbell(listening)
    bench = pull_bench(NUM_PAGES, doorbell=doorbell)
    bench.lease.is_left = False
    pulling = asyncio.create_task(bench.pull_loop.run())
    async with asyncio.timeout(PATIENCE_S):
        await listening.wait()
    assert len(bench.lease.offers) == 1
    pulling.cancel()
    await asyncio.wait([pulling])
    assert doorbell.is_closed
