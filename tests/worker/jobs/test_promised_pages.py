"""The sum that is kept job by job says what counting every job anew would say."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from workers.parts import PAGE_SIZE, a_member, an_engine, page_budget_of
from workers.steps import step

from tokenbus.engine.types import Admission, EngineStats, FinishReason, SamplingParams
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.held.held_jobs import HeldJobs
from tokenbus.worker.held.prepared_job import PreparedJob
from tokenbus.worker.jobs.engine_reports import EngineReports
from tokenbus.worker.jobs.flow import JobFlow
from tokenbus.worker.jobs.head_of_line import HeadOfLine
from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
from tokenbus.worker.jobs.page_tally import LEAVING, PageTally
from tokenbus.worker.jobs.settlement import Settlement
from tokenbus.worker.jobs.start import Starter
from tokenbus.worker.jobs.suspects import Suspects
from tokenbus.worker.messages.publishing import Decided, Taken
from tokenbus.worker.pool.parking import Parking

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from tokenbus.worker.held.held_job import HeldJob

NUM_PAGES = 120
PREFIXES = ("", "", "p", "q")
REQUEST = JobRequest.build(token_ids=[1])


async def _lost(_: object) -> None:
    raise SessionLost("gone")


def _run_at_once(calls: Coroutine[None, None, None]) -> None:
    with suppress(StopIteration):
        calls.send(None)


def _free_rows(jobs: Sequence[HeldJob]) -> int:
    """Count the rows of eight that no job has, or will have, in the engine."""
    counted = [job for job in jobs if not job.is_waiting]
    ended = sum(job.num_rows for job in counted if job.phase in LEAVING)
    free = 8 - sum(job.num_rows for job in counted if job.phase not in LEAVING)
    return min(free, free + 8 - ended)


class History:
    """A worker without server and engine to which one thing after another happens, at random."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.held_jobs = held_jobs = HeldJobs()
        self.page_budget = page_budget = page_budget_of(held_jobs, NUM_PAGES)
        member = a_member(held_jobs=held_jobs, session=Mock(call=_lost))
        engine, _ = an_engine()
        self.settlement = Settlement(member, engine)
        self.settlement.run_in(Mock(create_task=_run_at_once))
        parking = Parking(member, self.settlement, page_budget)
        self.starter = Starter(
            settlement=self.settlement,
            parking=parking,
            page_budget=page_budget,
            preparer=Mock(),
            engine=engine,
            metrics=member.metrics,
        )
        self.head_of_line = HeadOfLine(held_jobs, self.starter, parking)
        self.prefixes = HeldPrefixes(page_budget)
        common: dict[str, Any] = {
            "held_jobs": held_jobs,
            "engine": engine,
            "prefixes": self.prefixes,
            "settlement": self.settlement,
            "head_of_line": self.head_of_line,
            "metrics": member.metrics,
        }
        self.flow = JobFlow(costs=page_budget.costs, starter=self.starter, **common)
        suspects = Suspects(
            held_jobs,
            settlement=self.settlement,
            head_of_line=self.head_of_line,
            metrics=member.metrics,
        )
        self.engine_reports = EngineReports(
            page_budget=page_budget,
            suspects=suspects,
            publishers=Mock(num_processes=0),
            **common,
        )
        self._num_pulled = 0
        self._events: list[Callable[[], None]] = [
            *[self.pull, self.prepare, self.start] * 4,
            *[self.step] * 12,
            *[self.decide, self.leave] * 3,
            *[self.line_up, self.hand_back, self.pull_again],
        ]

    def happen(self) -> None:
        """Let one thing happen."""
        if self.rng.random() < 0.003:
            self.engine_reports.died()
            self.engine_reports.restarted(Mock(num_pages=NUM_PAGES))
        self.rng.choice(self._events)()

    def pull(self, job_id: str = "", epoch: int = 1) -> None:
        """Take a job."""
        if len(self.held_jobs) > 24:
            return
        rng = self.rng
        self._num_pulled += 1
        prefix = rng.choice(PREFIXES)
        pulled = PulledJob(
            job_id=job_id or f"j{self._num_pulled}", epoch=epoch, attempts=0,
            priority=rng.randrange(3), tenant=rng.choice("tu"), pages=rng.randint(1, 12),
            head_of_line=not self.head_of_line.is_taken and rng.random() < 0.1, num_logged=0,
            remaining_ms=None, request=b"", prefix=prefix, num_choices=rng.choice((1, 1, 3)),
            shared_pages=rng.randint(0, 3) if prefix else 0,
        )  # fmt: skip
        job = self.held_jobs.take(pulled)
        self.prefixes.pulled(job)
        if job.is_waiting:
            self.head_of_line.join(job)

    def pull_again(self) -> None:
        """Take a job anew that was taken before and has not left yet."""
        for job in self._some(Phase.PULLED):
            self.pull(job.job_id, job.epoch + 1)

    def prepare(self) -> None:
        """Tokenise a job whose prompt shares more or less with others of its prefix."""
        rng = self.rng
        for job in self._some(Phase.PULLED, where=lambda job: job.prepared is None):
            shared = [sum(job.pulled.prefix.encode())] * rng.choice((20, 40, 64, 90))
            own = [1000 + job.request_id] * rng.randint(1, 40)
            params = SamplingParams(
                max_tokens=rng.choice((1, 5, 40, 80)),
                n=job.pulled.num_choices,
                prompt_logprobs=0 if rng.random() < 0.1 else None,
            )
            job.prepared = PreparedJob(REQUEST, (*shared, *own), params)
            # Somebody may look before it is compared with others of its prefix.
            if rng.random() < 0.5:
                self.check()
            self.prefixes.prepared(job)

    def line_up(self) -> None:
        """Let a job turn out too large for the room that is left."""
        for job in self._some(Phase.PULLED, where=lambda job: job.prepared is not None):
            if not self.head_of_line.is_taken:
                self.head_of_line.join(job)

    def start(self) -> None:
        """Start a job, from nothing or after what its log has."""
        for job in self._some(Phase.PULLED, where=lambda job: job.prepared is not None):
            job.publisher_link = Mock(num_jobs=1)
            num = job.num_rows
            before = self.rng.choice((0, 0, 3))
            ids = [(7,) * before] * num
            self.starter.start(job, Taken(1, job.request_id, before * num, ids, [None] * num))

    def step(self) -> None:
        """Let the engine admit some, take pages from others, deliver tokens and end choices."""
        rng = self.rng
        running = self.held_jobs.in_phase(Phase.RUNNING)
        fresh = [job for job in running if job.timings.admitted_at is None]
        record = step(
            admitted=[
                Admission(job.request_id, job.prompt_tokens, rng.choice((0, 16, 48)))
                for job in fresh
                if rng.random() < 0.6
            ],
            stats=EngineStats(NUM_PAGES + 1, rng.randint(0, NUM_PAGES), 0, 0, 0),
        )
        for job in running:
            if job in fresh or rng.random() < 0.3:
                continue
            for choice in range(job.num_rows):
                record.request_ids.append(job.request_id)
                record.choices.append(choice)
                record.counts.append(rng.choice((1, 1, 1, 2, 17)))
                if rng.random() < 0.05:
                    reason = rng.choice((FinishReason.STOP, FinishReason.FAILED))
                    record.ends.append((len(record.counts) - 1, reason, None, None))
            if rng.random() < 0.04:
                record.preempted.append(job.request_id)
        record.token_ids.extend([300] * sum(record.counts))
        self.engine_reports.take(record)
        again = set(record.request_ids).difference(record.preempted)
        assert not any(job.is_preempted for job in self.held_jobs if job.request_id in again)

    def decide(self) -> None:
        """Let a publisher find the end of a job."""
        for job in self._some(Phase.RUNNING, Phase.ENDING):
            lengths = [max(1, length - self.rng.randint(0, 3)) for length in job.lengths]
            reasons: list[str | None] = ["stop"] * len(lengths)
            self.flow.decided(job, Decided(job.request_id, "stop", reasons, lengths))

    def hand_back(self) -> None:
        """Begin to give a job back."""
        for job in self._some(Phase.PULLED, Phase.RUNNING):
            self.settlement.hand_back(job)

    def leave(self) -> None:
        """Let go of a job whose last call was answered."""
        for job in self._some(Phase.ENDING, Phase.HANDING_BACK):
            self.held_jobs.drop(job)

    def _some(
        self, *phases: Phase, where: Callable[[HeldJob], bool] = lambda _: True
    ) -> Sequence[HeldJob]:
        found = [job for job in self.held_jobs.in_phase(*phases) if where(job)]
        return self.rng.sample(found, 1) if found else ()

    def check(self) -> None:
        """Compare every answer with a count of all jobs."""
        budget, costs = self.page_budget, self.page_budget.costs
        jobs, available = list(self.held_jobs), self.page_budget.available_pages
        tally, room = PageTally.of(jobs, costs, offered={}), budget.room()
        found = (room.pages, room.rows, set(room.carried))
        assert found == (available - tally.pages, _free_rows(jobs), tally.carried)
        assert (budget.budget(), budget.free_rows()) == found[:2]
        named = [name for name in ("p", "q", "none") if self.rng.random() < 0.5]
        with budget.offered(3, dict.fromkeys(named, 2 * PAGE_SIZE)):
            offered = dict.fromkeys(named, 2)
            tally = PageTally.of(jobs, costs, offered=offered)
            assert budget.budget() == available - 3 - tally.pages
            self._check_waiting(jobs, available - 3, offered)
        self._check_waiting(jobs, available, {})
        book = self.held_jobs.book
        assert set(book.waiting) == {job for job in jobs if job.is_waiting}
        assert set(book.returning) == set(self.held_jobs.in_phase(Phase.HANDING_BACK))
        running = [job.pulled.priority for job in self.held_jobs.in_phase(Phase.RUNNING)]
        assert book.least_urgent() == max(running, default=None)

    def _check_waiting(self, jobs: Sequence[HeldJob], pages: int, offered: dict[str, int]) -> None:
        for job in jobs:
            if job.is_waiting and job.phase is Phase.PULLED:
                rows = _free_rows(jobs)
                tally = PageTally.of(jobs, self.page_budget.costs, offered=offered, also=job)
                has_room = rows >= job.num_rows and pages >= tally.pages
                # Alone in the engine, unless a pull may bring others.
                is_alone = (
                    all(other.is_waiting for other in jobs)
                    and pages == self.page_budget.available_pages
                )
                assert self.page_budget.has_room(job) == has_room
                assert self.page_budget.fits(job) == (has_room or is_alone)


@pytest.mark.parametrize("seed", range(4))
def test_kept_sum_equals_a_count_of_all_jobs(seed: int) -> None:
    """Whatever happens to jobs, pages, rows and prefixes are those that a recount finds."""
    history = History(seed)
    for num in range(1, 1500):
        history.happen()
        if num % history.rng.randint(1, 3) == 0:
            history.check()
