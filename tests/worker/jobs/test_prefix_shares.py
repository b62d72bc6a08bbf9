"""What jobs of one prefix are taken to share: never more than they do."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from workers.parts import PAGE_SIZE

from tokenbus.engine.types import SamplingParams
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.held.held_job import HeldJob
from tokenbus.worker.held.prepared_job import PreparedJob
from tokenbus.worker.jobs.page_costs import PageCosts
from tokenbus.worker.jobs.prefix_shares import PrefixShares, count_common

REQUEST_IDS = count(1)


@pytest.fixture
def shares() -> PrefixShares:
    """Give an empty table."""
    return PrefixShares(PAGE_SIZE)


def a_job(*runs: tuple[int, int], prefix: str = "p", **params: Any) -> HeldJob:
    """Make a tokenised job whose prompt is each (token, times) in turn."""
    fields: dict[str, Any] = {"job_id": "j", "epoch": 1, "attempts": 0, "priority": 1}
    fields |= {"tenant": "t", "pages": 9, "head_of_line": False, "num_logged": 0}
    pulled = PulledJob(**fields, remaining_ms=None, request=b"", prefix=prefix)
    job = HeldJob(pulled, next(REQUEST_IDS))
    ids = tuple(token for token, times in runs for _ in range(times))
    job.prepared = PreparedJob(JobRequest.build(token_ids=[1]), ids, SamplingParams(**params))
    return job


@pytest.mark.parametrize("size", [0, 1, 5, 6])
def test_common_beginning_is_counted_to_the_token(size: int) -> None:
    """Equal, shorter and different prompts."""
    assert count_common((1, 2, 3, 4, 5), ((1, 2, 3, 4, 5)[:size])) == min(size, 5)
    assert count_common((1, 2, 3), (1, 9, 3)) == 1


def test_two_prompts_share_the_full_pages_of_what_they_begin_with(shares: PrefixShares) -> None:
    """Of 40 common tokens two pages of sixteen are shared."""
    one, two = a_job((1, 40), (2, 20)), a_job((1, 40), (3, 90))
    shares.join(one)
    shares.join(two)
    assert [shares.pages_of(one), shares.pages_of(two)] == [2, 2]
    assert shares.tokens_of("p") == 40


def test_stranger_lowers_what_is_shared_until_it_leaves(shares: PrefixShares) -> None:
    """A job that begins otherwise shares nothing, and what it does not share nobody counts on."""
    jobs = [a_job((1, 64), (number, 9)) for number in (5, 6, 7)]
    for job in jobs:
        shares.join(job)
    stranger = a_job((1, 20), (2, 50))
    shares.join(stranger)
    assert {shares.pages_of(job) for job in (*jobs, stranger)} == {1}
    shares.leave(stranger)
    assert {shares.pages_of(job) for job in jobs} == {4}
    assert shares.pages_of(stranger) == 0


def test_first_of_its_kind_leads_to_no_expectation(shares: PrefixShares) -> None:
    """One prompt does not tell how much the next will share with it."""
    shares.join(a_job((1, 64)))
    assert shares.tokens_of("p") == 0
    assert shares.tokens_of("unheard of") == 0


def test_expectation_outlives_the_jobs_until_dropped(shares: PrefixShares) -> None:
    """What two prompts shared is expected of the next, also when both are gone."""
    first, second = a_job((1, 64), (2, 8)), a_job((1, 64), (3, 8))
    shares.join(first)
    shares.leave(first)
    shares.join(second)
    assert shares.tokens_of("p") == 64
    shares.leave(second)
    assert shares.tokens_of("p") == 64
    shares.drop("p")
    assert shares.tokens_of("p") == 0


def test_last_prompt_token_is_never_shared(shares: PrefixShares) -> None:
    """Of two equal prompts of exactly four pages three come from the cache."""
    one, two = a_job((1, 64)), a_job((1, 64))
    shares.join(one)
    shares.join(two)
    assert shares.pages_of(two) == 3


def test_job_that_computes_its_whole_prompt_shares_nothing(shares: PrefixShares) -> None:
    """Prompt logprobs need every position, so such a job takes no page from others."""
    one, two = a_job((1, 64)), a_job((1, 64), prompt_logprobs=0)
    shares.join(one)
    shares.join(two)
    assert (shares.pages_of(two), shares.tokens_of("p")) == (0, 0)


def test_job_that_turns_out_to_share_needs_less_than_was_pulled_for_it() -> None:
    """The pull did not know the prefix and counted all pages; room for more is there at once."""
    costs = PageCosts(PAGE_SIZE, total_pages=100)
    jobs = [a_job((1, 130), prefix=name, max_tokens=1) for name in ("p", "p", "")]
    for job in jobs:
        assert job.pulled.pages == 9
        costs.shares.join(job)
    assert [costs.needs_less(job) for job in jobs[1:]] == [True, False]
