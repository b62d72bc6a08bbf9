"""When a waiting job may start: what a pull brings is counted first, and nothing is overlooked."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

from tokenbus.engine.types import Admission, EngineLimits, EngineStats, SamplingParams
from tokenbus.producer.replies import Pulled, PulledJob, PullStatus
from tokenbus.producer.schema import JobRequest
from tokenbus.worker.handoff import StepRecord
from tokenbus.worker.held_job import Phase
from tokenbus.worker.held_prefixes import HeldPrefixes
from tokenbus.worker.intake import Intake
from tokenbus.worker.ledger import Ledger
from tokenbus.worker.metrics import Metrics
from tokenbus.worker.outputs import Outputs
from tokenbus.worker.prompt import PreparedJob
from tokenbus.worker.publishing.messages import Taken
from tokenbus.worker.roster import Roster
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
    async def custody(self) -> AsyncIterator[None]:
        """Let the caller in."""
        yield

    async def pull(self, *_: object) -> Pulled:
        """Bring the job."""
        return Pulled(PullStatus.JOBS, (self.answer,))


class StubStarter:
    """Starts a waiting job that fits, and prepares nothing."""

    can_start = True

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.started: list[str] = []

    def admit(self, job: HeldJob) -> None:
        """Note which job would start."""
        if self._ledger.fits(job):
            self.started.append(job.job_id)

    async def prepare(self, job: HeldJob) -> None:
        """Leave a pulled job as it came."""


def pulled_job(job_id: str, epoch: int, pages: int, *, waits: bool = False) -> PulledJob:
    """Make a job of `pages` pages."""
    return PulledJob(
        job_id=job_id, epoch=epoch, attempts=0, priority=1, tenant="t", pages=pages,
        head_of_line=waits, num_logged=0, remaining_ms=None, request=b"", prefix="",
    )  # fmt: skip


def intake_of(roster: Roster, ledger: Ledger, starter: StubStarter, lease: StubLease) -> Intake:
    """Make a pull loop around what a test looks at."""
    unused: Any = SimpleNamespace(execute_command=None)
    clearance: Any = SimpleNamespace(nothing_claimed=lambda: None, is_parking=False)
    parts: list[Any] = [StubSession(), SimpleNamespace(lease=lease), unused, unused, lease]
    parts += [starter, clearance, ledger, HeldPrefixes(ledger, is_on=False), roster]
    parts += ["w", WorkerSettings(), Metrics()]
    return Intake(*parts)


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
    roster = Roster()
    ledger = Ledger(roster, EngineLimits("m", 8, PAGE_SIZE, 4096, 8, (), 512), NUM_PAGES, 0.0)
    starter = StubStarter(ledger)
    again = pulled_job("again", 2, 3)
    intake = intake_of(roster, ledger, starter, StubLease(again))
    roster.on_gone = lambda _: intake.pages_changed()
    roster.take(pulled_job("again", 1, 2))
    waiting = roster.take(pulled_job("waiting", 1, NUM_PAGES - 1, waits=True))
    prepare(waiting, 1, 96)
    async with asyncio.TaskGroup() as tasks:
        await intake._pull(tasks)
    assert starter.started == []
    assert roster.get("again") is not None
    assert ledger.budget() == NUM_PAGES - again.pages


def test_waiting_job_starts_with_the_first_token_of_one_that_held_its_room() -> None:
    """Until its first token a job's prompt counts twice: its pages are taken and still promised.

    No job has to end for the one at the head of the line to fit then, and nothing else tells.
    """
    roster = Roster()
    limits = EngineLimits("m", 2 * NUM_PAGES, PAGE_SIZE, 4096, 8, (), 512)
    ledger = Ledger(roster, limits, 2 * NUM_PAGES, 0.0)
    starter = StubStarter(ledger)
    intake = intake_of(roster, ledger, starter, StubLease(pulled_job("none", 1, 1)))
    outputs = Outputs(roster, ledger, Metrics())
    outputs.pages_changed = intake.pages_changed
    running = roster.take(pulled_job("running", 1, 7))
    prepare(running, 6, PAGE_SIZE)
    running.taken = Taken(0, running.request_id, 0, [()], [None])
    running.press = Mock()
    running.move_to(Phase.RUNNING)
    waiting = roster.take(pulled_job("waiting", 1, 5, waits=True))
    prepare(waiting, 4, PAGE_SIZE)
    stats = EngineStats(2 * NUM_PAGES, 2 * NUM_PAGES - 6, 0, 1, 0)
    key = running.request_id
    admission = Admission(key, 6 * PAGE_SIZE, 0)
    outputs.take(StepRecord([], [], [], [], [], [], [], [admission], [], stats, 1.0))
    assert starter.started == []
    outputs.take(StepRecord([key], [0], [1], [300], [], [], [], [], [], stats, 2.0))
    assert starter.started == ["waiting"]
