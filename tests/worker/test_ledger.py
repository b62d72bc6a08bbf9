"""What a worker counts as free: never what somebody else was told is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tokenbus.engine.types import EngineLimits, SamplingParams
from tokenbus.producer.replies import PulledJob
from tokenbus.producer.schema import JobRequest
from tokenbus.worker.ledger import Ledger
from tokenbus.worker.prompt import PreparedJob
from tokenbus.worker.roster import Roster

if TYPE_CHECKING:
    from tokenbus.worker.held_job import HeldJob

PAGE_SIZE = 16
NUM_PAGES = 12
LIMITS = EngineLimits("m", NUM_PAGES, PAGE_SIZE, 4096, 8, (), 512)


@pytest.fixture
def roster() -> Roster:
    """Give an empty roster."""
    return Roster()


@pytest.fixture
def ledger(roster: Roster) -> Ledger:
    """Give the accounts of an idle engine."""
    return Ledger(roster, LIMITS, NUM_PAGES, 0.0)


def take(roster: Roster, job_id: str, pages: int, *, waits: bool = False) -> HeldJob:
    """Register a job that needs `pages` pages, all but one for its output."""
    pulled = PulledJob(
        job_id=job_id, epoch=1, attempts=0, priority=1, tenant="t", pages=pages,
        head_of_line=waits, num_logged=0, remaining_ms=None, request=b"", prefix="",
    )  # fmt: skip
    job = roster.take(pulled)
    params = SamplingParams(max_tokens=(pages - 1) * PAGE_SIZE)
    job.prepared = PreparedJob(JobRequest.build(token_ids=[1]), (1,) * PAGE_SIZE, params)
    job.lengths = [0]
    return job


def test_pages_offered_to_a_pull_are_not_given_to_the_head_of_the_line(
    roster: Roster, ledger: Ledger
) -> None:
    """While a pull is under way its pages are spoken for; what it leaves may start the waiting job.

    Both would otherwise come to an engine that has pages for one of them.
    """
    take(roster, "running", 4)
    waiting = take(roster, "waiting", 6, waits=True)
    assert ledger.budget() == 8
    assert ledger.fits(waiting)
    ledger.offered_pages = 8
    assert not ledger.fits(waiting)
    ledger.offered_pages = 0
    take(roster, "pulled meanwhile", 3)
    assert not ledger.fits(waiting)


def test_waiting_job_does_not_take_an_empty_engine_from_under_a_pull(
    roster: Roster, ledger: Ledger
) -> None:
    """A job too big for the free pages has the engine alone, but not while others may come."""
    waiting = take(roster, "waiting", NUM_PAGES, waits=True)
    ledger.available_pages = NUM_PAGES - 1
    ledger.offered_pages = NUM_PAGES - 1
    assert not ledger.fits(waiting)
    ledger.offered_pages = 0
    assert ledger.fits(waiting)
