"""What follows from the events of a job: for the engine, its log and a job that waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from workers.parts import JobParts, a_member, job_parts, page_budget_of
from workers.steps import step

from tokenbus.engine.types import FinishReason
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.messages.engine import AbortRequest
from tokenbus.worker.messages.publishing import Decided

if TYPE_CHECKING:
    from tokenbus.worker.held.held_job import HeldJob

NUM_PAGES = 8


async def _lost(_: object) -> None:
    """Be a call that the end of the session breaks off."""
    raise SessionLost("gone")


class _Starter:
    """Notes which jobs would start."""

    def __init__(self) -> None:
        self.admitted: list[HeldJob] = []

    def admit(self, job: HeldJob) -> None:
        """Note a job."""
        self.admitted.append(job)


@pytest.fixture
def starter() -> _Starter:
    """Give a starter that notes what it is asked for."""
    return _Starter()


@pytest.fixture
def parts(starter: _Starter) -> JobParts:
    """Give a worker without jobs."""
    member = a_member(session=Mock(call=_lost))
    return job_parts(member, page_budget_of(member.held_jobs, NUM_PAGES), starter)


def running_job(parts: JobParts) -> tuple[HeldJob, Any]:
    """Let a job run; return it and the link to its publisher."""
    job = parts.member.held_jobs.take(PulledJob("ours", 1, 0, 1, "t", 2, False, 0, None, b""))
    job.publisher_link = link = Mock(num_jobs=1)
    job.move_to(Phase.RUNNING)
    return job, link


def test_job_that_leaves_makes_room_and_its_publisher_lets_go(
    parts: JobParts, starter: _Starter
) -> None:
    """Its log is dropped once, and the job at the head of the line may have its pages."""
    job, link = running_job(parts)
    waiting = parts.member.held_jobs.take(PulledJob("waits", 1, 0, 1, "t", 7, True, 0, None, b""))
    parts.member.held_jobs.drop(job)
    assert [order.key for (order,), _ in link.send.call_args_list] == [job.request_id]
    assert (link.num_jobs, job.publisher_link) == (0, None)
    assert starter.admitted == [waiting]
    parts.member.held_jobs.drop(job)
    assert link.send.call_count == 1


def test_job_that_ended_by_itself_is_taken_out_of_the_engine_once(
    parts: JobParts, starter: _Starter
) -> None:
    """Its publisher commits the end; once it is not running, there is nothing to stop."""
    job, _ = running_job(parts)
    waiting = parts.member.held_jobs.take(PulledJob("waits", 1, 0, 1, "t", 7, True, 0, None, b""))
    decided = Decided(job.request_id, "stop", ["stop"], [5])
    parts.flow.decided(job, decided)
    assert parts.sent == [AbortRequest(job.request_id)]
    assert (job.phase, job.lengths, starter.admitted) == (Phase.ENDING, [5], [waiting])
    parts.flow.decided(job, decided)
    assert parts.sent == [AbortRequest(job.request_id)]


async def test_jobs_of_a_dead_engine_are_handed_back_and_the_next_has_all_pages(
    parts: JobParts,
) -> None:
    """A job that ran counts a crash, one that did not run does not."""
    engine_reports = parts.engine_reports(Mock())
    job, link = running_job(parts)
    pulled = parts.member.held_jobs.take(PulledJob("idle", 1, 0, 1, "t", 7, False, 0, None, b""))
    async with asyncio.TaskGroup() as tasks:
        parts.settlement.run_in(tasks)
        engine_reports.died()
    assert [held.phase for held in (job, pulled)] == [Phase.HANDING_BACK] * 2
    assert [held.crashed for held in (job, pulled)] == [True, False]
    assert link.send.call_count == 1
    parts.page_budget.start_anew(1)
    engine_reports.restarted(Mock(num_pages=NUM_PAGES))
    assert parts.page_budget.available_pages == NUM_PAGES


def test_steps_are_moments_of_those_jobs_alone_that_have_tokens_in_them(parts: JobParts) -> None:
    """A job that misses a step has a wider gap, one that ends has the last step as well.

    Rows without tokens, and those of jobs that nobody holds, count for nobody.
    """
    engine_reports, held_jobs = parts.engine_reports(Mock(num_processes=1)), parts.member.held_jobs
    jobs = []
    for number in range(2):
        pulled = PulledJob(f"j{number}", 1, 0, 1, "t", 2, False, 0, None, b"")
        jobs.append(job := held_jobs.take(pulled))
        job.publisher_link, job.lengths, job.num_running = Mock(num_jobs=1), [0], 1
        job.move_to(Phase.RUNNING)
    ours, other = (job.request_id for job in jobs)
    for tokens in ({ours: [1], other: [1]}, {ours: [], other: [1]}, {99: [1], other: [1]}):
        engine_reports.take(step(tokens=tokens))
    ended = {ours: FinishReason.LENGTH, other: FinishReason.LENGTH}
    engine_reports.take(step(tokens={ours: [1, 2], other: [1]}, ends=ended))
    mine, moments = (job.timings.tokens_at.listed().tolist() for job in jobs)
    assert len(set(moments)) == 4
    assert mine == [moments[0], moments[3]]
    assert [job.timings.tokens_at.last for job in jobs] == [moments[3]] * 2
