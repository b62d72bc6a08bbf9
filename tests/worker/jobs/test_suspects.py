"""Suspects on a worker: who is cleared, who is blamed, and what the next pull is told."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
from workers.parts import JobParts, a_member, job_parts, page_budget_of

from tokenbus.producer.scripts.evidence import Crowd, Evidence
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held.held_job import Phase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.scripts.evidence import Crash
    from tokenbus.worker.held.held_job import HeldJob

OPEN, SUSPECT, ALONE = "0 2 0 1 40 20 0", "8 0 0 2 40 20 0", "1 0 0 2 40 20 0"
TRIED = "1 0 0 2 40 20 1"


class Bus:
    """A worker's held jobs, without a queue to give them back to."""

    def __init__(self, parts: JobParts) -> None:
        self.parts = parts
        self.suspects = parts.suspects
        self.given_back: dict[str, HeldJob] = {}

    def board(self, job_id: str, packed: str = "", *, attempts: int = 0) -> HeldJob:
        """Let a job run that has gone on after index 30."""
        evidence = Evidence.parse(packed, attempts) if packed or attempts else None
        pulled = PulledJob(
            job_id, 1, attempts, 1, "t", 1, False, 0, None, b"", evidence=evidence
        )  # fmt: skip
        job = self.parts.member.held_jobs.take(pulled)
        job.lengths, job.first = [30], 30
        job.move_to(Phase.RUNNING)
        self.suspects.watch(job)
        return job

    def die(self) -> dict[str, Crash]:
        """Let the engine die; return what each job is handed back with."""
        aboard = self.parts.member.held_jobs.in_phase(Phase.RUNNING)
        self.is_headway = self.suspects.blame(aboard)
        for job in aboard:
            self.parts.member.held_jobs.drop(job)
        return {job.job_id: job.crash for job in aboard if job.crash is not None}


@pytest.fixture
async def bus() -> AsyncIterator[Bus]:
    """Give a worker whose calls break off."""

    async def lost(_: object) -> None:
        raise SessionLost("gone")

    member = a_member(session=Mock(call=lost))
    parts = job_parts(member, page_budget_of(member.held_jobs, 100), Mock())
    async with asyncio.TaskGroup() as tasks:
        parts.settlement.run_in(tasks)
        yield Bus(parts)


async def test_job_is_cleared_past_index_and_run(bus: Bus) -> None:
    """Sixteen tokens past both: where it was, and how far it had come since its start."""
    job = bus.board("j", SUSPECT)
    bus.board("other")
    assert bus.suspects.crowd == Crowd(1, 8, 1)
    job.lengths = [66]
    bus.suspects.stepped(delivered=True)
    assert bus.suspects.crowd == Crowd(1, 8, 1)
    job.lengths = [67]
    bus.suspects.stepped(delivered=True)
    assert (bus.suspects.crowd, job.passed, job.phase) == (Crowd(), "all", Phase.RUNNING)
    assert bus.parts.member.metrics.suspects_cleared == 1


async def test_job_that_passes_alone_is_tried_beside_others(bus: Bus) -> None:
    """Nothing is pulled meanwhile, and then it goes back."""
    job = bus.board("j", ALONE, attempts=2)
    assert bus.suspects.keeps_others_off
    job.lengths = [67]
    bus.suspects.stepped(delivered=True)
    assert (job.passed, job.phase) == ("alone", Phase.HANDING_BACK)
    assert not bus.suspects.keeps_others_off


async def test_suspects_alone_are_blamed_where_there_are_some(bus: Bus) -> None:
    """The others on board were there by permission: against them it is noted, no more."""
    bus.board("s-1", SUSPECT)
    bus.board("s-2", SUSPECT)
    bus.board("open", OPEN)
    bus.board("new").lengths = [50]
    crashes = bus.die()
    assert {crash.num_suspected for crash in crashes.values()} == {2}
    assert {crash.num_beside for crash in crashes.values()} == {2}
    assert {name for name, crash in crashes.items() if crash.is_beside} == {"open", "new"}
    assert (crashes["new"].place, crashes["new"].since) == (50, 20)
    assert bus.is_headway


async def test_open_case_is_blamed_with_one_that_has_passed_alone(bus: Bus) -> None:
    """Each has something against it: who ran alone unharmed is not found guilty for the other."""
    bus.board("passed", TRIED, attempts=1)
    bus.board("open", OPEN)
    bus.board("new")
    crashes = bus.die()
    assert {name for name, crash in crashes.items() if crash.is_beside} == {"new"}
    assert {crash.num_suspected for crash in crashes.values()} == {2}


async def test_one_that_has_passed_alone_is_blamed_beside_those_without_a_case(bus: Bus) -> None:
    """So the one of two that kill only together is found."""
    bus.board("passed", TRIED, attempts=1)
    bus.board("new")
    crashes = bus.die()
    assert (crashes["passed"].is_beside, crashes["new"].is_beside) == (False, True)
    assert crashes["passed"].num_suspected == 1


async def test_everyone_is_blamed_where_nobody_is_suspected(bus: Bus) -> None:
    """One of those who were on board it was."""
    bus.board("open", OPEN)
    bus.board("new")
    crashes = bus.die()
    assert [crash.num_suspected for crash in crashes.values()] == [2, 2]
    assert not any(crash.is_beside for crash in crashes.values())


async def test_nothing_is_pulled_before_a_crash_was_told(bus: Bus) -> None:
    """Until then the worker is not as empty as it looks, and a suspect could not run alone."""
    job = bus.board("j")
    bus.suspects.blame([job])
    assert bus.suspects.keeps_others_off
    bus.parts.member.held_jobs.drop(job)
    assert not bus.suspects.keeps_others_off


async def test_engine_of_which_every_job_dies_is_doubted(bus: Bus) -> None:
    """Of jobs that die alone in a row only the first is found guilty here.

    The worker takes others next; a token of anyone, or that there is nobody else, ends that.
    """
    for _ in range(2):
        bus.board("j", ALONE, attempts=2)
        assert bus.die()["j"].is_sound
    bus.board("k", ALONE, attempts=2)
    assert not bus.die()["k"].is_sound
    assert not bus.is_headway
    assert bus.suspects.crowd.num_suspects > 1000
    bus.suspects.pulled(0)
    assert bus.suspects.crowd == Crowd()
    bus.suspects.stepped(delivered=True)
    bus.board("k", ALONE, attempts=2)
    assert bus.die()["k"].is_sound


async def test_nobody_on_board_is_nobody_to_blame(bus: Bus) -> None:
    """An engine that dies idle dies of itself."""
    assert bus.die() == {}
    assert not bus.is_headway
