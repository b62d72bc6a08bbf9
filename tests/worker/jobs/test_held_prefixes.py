"""Which prefixes a worker says it holds, by the pages that came and went."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
from workers.parts import PAGE_SIZE, page_budget_of

from tokenbus.engine.types import SamplingParams
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.held.held_job import HeldJob
from tokenbus.worker.held.held_jobs import HeldJobs
from tokenbus.worker.held.prepared_job import PreparedJob
from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
from tokenbus.worker.messages.publishing import Taken

if TYPE_CHECKING:
    from tokenbus.worker.jobs.page_budget import PageBudget

NUM_PAGES = 40
# Ids of tokens that no two prompts share.
FRESH = count(1000)


@pytest.fixture
def page_budget() -> PageBudget:
    """Give the accounts of an idle engine."""
    return page_budget_of(HeldJobs(), NUM_PAGES)


def run(
    prefixes: HeldPrefixes, prefix: str, own: int = PAGE_SIZE, *, leave: bool = True
) -> HeldJob:
    """Bring a job whose prompt is ten pages of its prefix and some tokens of its own."""
    pulled: dict[str, Any] = {"job_id": "j", "epoch": 1, "attempts": 0, "priority": 1}
    pulled |= {"tenant": "t", "pages": 11, "head_of_line": False, "num_logged": 0}
    job = HeldJob(PulledJob(**pulled, remaining_ms=None, request=b"", prefix=prefix), 1)
    prefixes.pulled(job)
    shared = [sum(prefix.encode())] * 10 * PAGE_SIZE
    own_ids = [next(FRESH)] * own
    request = JobRequest.build(token_ids=[1])
    job.prepared = PreparedJob(request, (*shared, *own_ids), SamplingParams())
    job.taken, job.lengths = Taken(1, 1, 0, [()], [None]), [0]
    prefixes.prepared(job)
    if leave:
        prefixes.gone(job)
    return job


def test_prefixes_are_held_until_later_ones_need_their_pages(page_budget: PageBudget) -> None:
    """Of forty pages three prompts of ten and their tails are kept, the oldest goes first."""
    prefixes = HeldPrefixes(page_budget)
    for name in "abab":
        run(prefixes, name)
    assert set(prefixes.held()) == {"a", "b"}
    for name in "ccdd":
        run(prefixes, name)
    assert set(prefixes.held()) == {"b", "c", "d"}
    assert prefixes.lost() == ["a"]
    prefixes.told(prefixes.lost())
    assert prefixes.lost() == []


def test_prefix_in_use_is_held_whatever_comes(page_budget: PageBudget) -> None:
    """Pages of a running job are not evicted."""
    prefixes = HeldPrefixes(page_budget)
    running = run(prefixes, "a", leave=False)
    for name in "bcdefg":
        run(prefixes, name)
    assert "a" in prefixes.held()
    assert "b" in prefixes.lost()
    prefixes.gone(running)
    assert "a" in prefixes.held()


def test_tails_of_other_jobs_push_a_prefix_out(page_budget: PageBudget) -> None:
    """Pages that nobody shares count as well, once they are released."""
    prefixes = HeldPrefixes(page_budget)
    run(prefixes, "a")
    run(prefixes, "a")
    run(prefixes, "", own=29 * PAGE_SIZE)
    assert prefixes.held() == {}
    assert prefixes.lost() == ["a"]


def test_new_engine_holds_nothing(page_budget: PageBudget) -> None:
    """What a dead engine had is given up."""
    prefixes = HeldPrefixes(page_budget)
    run(prefixes, "a")
    prefixes.clear()
    assert prefixes.held() == {}
    assert prefixes.lost() == ["a"]


def test_switched_off_it_remembers_nothing(page_budget: PageBudget) -> None:
    """Without affinity nothing is kept for any job."""
    prefixes = HeldPrefixes(page_budget, is_on=False)
    run(prefixes, "a")
    assert prefixes.held() == {}
