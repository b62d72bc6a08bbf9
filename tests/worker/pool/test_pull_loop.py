"""When a waiting job may start: what a pull brings is counted first, and nothing is overlooked."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

from workers.steps import step

from tokenbus.engine.types import Admission, EngineLimits, EngineStats, SamplingParams
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.scripts.replies import Pulled, PulledJob, PullStatus
from tokenbus.worker.held_job import Phase
from tokenbus.worker.held_jobs import HeldJobs
from tokenbus.worker.jobs.engine_reports import EngineReports
from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
from tokenbus.worker.jobs.page_budget import PageBudget
from tokenbus.worker.jobs.prompt import PreparedJob
from tokenbus.worker.metrics import Metrics
from tokenbus.worker.pool.pull_loop import PullLoop
from tokenbus.worker.publishing.messages import Taken
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tokenbus.worker.held_job import HeldJob

PAGE_SIZE = 16
NUM_PAGES = 8


class StubSession:
    """Makes every call at once."""

    async def call(self, call: Callable[[], Awaitable[Any]], **_: object) -> Any:
        """Make a call."""
        return await call()


class StubLease:
    """Answers the next pull with `answer`."""

    serial = 1

    def __init__(self, answer: PulledJob) -> None:
        self.answer = answer

    @asynccontextmanager
    async def settlement(self) -> AsyncIterator[None]:
        """Let the caller in."""
        yield

    async def pull(self, *_: object) -> Pulled:
        """Bring the job."""
        return Pulled(PullStatus.JOBS, (self.answer,))


class StubStarter:
    """Starts a waiting job that fits, and prepares nothing."""

    can_start = True

    def __init__(self, page_budget: PageBudget) -> None:
        self._page_budget = page_budget
        self.started: list[str] = []

    def admit(self, job: HeldJob) -> None:
        """Note which job would start."""
        if self._page_budget.fits(job):
            self.started.append(job.job_id)

    async def prepare(self, job: HeldJob) -> None:
        """Leave a pulled job as it came."""


def pulled_job(job_id: str, epoch: int, pages: int, *, waits: bool = False) -> PulledJob:
    """Make a job of `pages` pages."""
    return PulledJob(
        job_id=job_id, epoch=epoch, attempts=0, priority=1, tenant="t", pages=pages,
        head_of_line=waits, num_logged=0, remaining_ms=None, request=b"", prefix="",
    )  # fmt: skip


def pull_loop_of(
    held_jobs: HeldJobs, page_budget: PageBudget, starter: StubStarter, lease: StubLease
) -> PullLoop:
    """Make a pull loop around what a test looks at."""
    unused: Any = SimpleNamespace(execute_command=None)
    parking: Any = SimpleNamespace(nothing_claimed=lambda: None, is_parking=False)
    parts: list[Any] = [StubSession(), SimpleNamespace(lease=lease), unused, unused, lease]
    parts += [starter, parking, page_budget, HeldPrefixes(page_budget, is_on=False), held_jobs]
    parts += ["w", WorkerSettings(), Metrics()]
    return PullLoop(*parts)


def prepare(job: HeldJob, num_prompt_pages: int, max_tokens: int) -> None:
    """Let a job be tokenised."""
    prompt = (1,) * (num_prompt_pages * PAGE_SIZE)
    job.prepared = PreparedJob(
        JobRequest.build(token_ids=[1]), prompt, SamplingParams(max_tokens=max_tokens)
    )
    job.lengths = [0]


async def test_job_that_replaces_its_older_epoch_is_counted_before_a_waiting_one_starts() -> None:
    """A job given back as too big comes again before the answer to its hand-back is here.

    Its older self is forgotten then, and the pages of that are its own: the job at the head of the
    line, which they would just make room for, goes on waiting.
    """
    held_jobs = HeldJobs()
    page_budget = PageBudget(
        held_jobs, EngineLimits("m", 8, PAGE_SIZE, 4096, 8, (), 512), NUM_PAGES, 0.0
    )
    starter = StubStarter(page_budget)
    again = pulled_job("again", 2, 3)
    pull_loop = pull_loop_of(held_jobs, page_budget, starter, StubLease(again))
    held_jobs.on_gone = lambda _: pull_loop.pages_changed()
    held_jobs.take(pulled_job("again", 1, 2))
    waiting = held_jobs.take(pulled_job("waiting", 1, NUM_PAGES - 1, waits=True))
    prepare(waiting, 1, 96)
    async with asyncio.TaskGroup() as tasks:
        await pull_loop._pull(tasks)
    assert starter.started == []
    assert held_jobs.get("again") is not None
    assert page_budget.budget() == NUM_PAGES - again.pages


def test_waiting_job_starts_with_the_first_token_of_one_that_held_its_room() -> None:
    """Until its first token a job's prompt counts twice: its pages are taken and still promised.

    No job has to end for the one at the head of the line to fit then, and nothing else tells.
    """
    held_jobs = HeldJobs()
    limits = EngineLimits("m", 2 * NUM_PAGES, PAGE_SIZE, 4096, 8, (), 512)
    page_budget = PageBudget(held_jobs, limits, 2 * NUM_PAGES, 0.0)
    starter = StubStarter(page_budget)
    pull_loop = pull_loop_of(held_jobs, page_budget, starter, StubLease(pulled_job("none", 1, 1)))
    engine_reports = EngineReports(held_jobs, page_budget, Metrics())
    engine_reports.pages_changed = pull_loop.pages_changed
    running = held_jobs.take(pulled_job("running", 1, 7))
    prepare(running, 6, PAGE_SIZE)
    running.taken = Taken(0, running.request_id, 0, [()], [None])
    running.publisher_link = Mock()
    running.move_to(Phase.RUNNING)
    waiting = held_jobs.take(pulled_job("waiting", 1, 5, waits=True))
    prepare(waiting, 4, PAGE_SIZE)
    stats = EngineStats(2 * NUM_PAGES, 2 * NUM_PAGES - 6, 0, 1, 0)
    key = running.request_id
    admission = Admission(key, 6 * PAGE_SIZE, 0)
    engine_reports.take(step(admitted=[admission], stats=stats))
    assert starter.started == []
    engine_reports.take(step(tokens={key: [300]}, stats=stats))
    assert starter.started == ["waiting"]
