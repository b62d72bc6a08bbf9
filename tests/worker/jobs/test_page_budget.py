"""What a worker counts as free: never what somebody else was told is free."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from workers.parts import PAGE_SIZE, page_budget_of

from tokenbus.engine.types import EngineStats, SamplingParams
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.held.held_job import HeldJob, Phase
from tokenbus.worker.held.held_jobs import HeldJobs
from tokenbus.worker.held.prepared_job import PreparedJob
from tokenbus.worker.messages.publishing import Taken

if TYPE_CHECKING:
    from tokenbus.worker.jobs.page_budget import PageBudget

NUM_PAGES = 12


@pytest.fixture
def held_jobs() -> HeldJobs:
    """Give a worker that holds no job."""
    return HeldJobs()


@pytest.fixture
def page_budget(held_jobs: HeldJobs) -> PageBudget:
    """Give the accounts of an idle engine."""
    return page_budget_of(held_jobs, NUM_PAGES)


def take(held_jobs: HeldJobs, job_id: str, pages: int, *, waits: bool = False) -> HeldJob:
    """Register a job that needs `pages` pages, all but one for its output."""
    pulled = PulledJob(
        job_id=job_id, epoch=1, attempts=0, priority=1, tenant="t", pages=pages,
        head_of_line=waits, num_logged=0, remaining_ms=None, request=b"", prefix="",
    )  # fmt: skip
    job = held_jobs.take(pulled)
    params = SamplingParams(max_tokens=(pages - 1) * PAGE_SIZE)
    job.prepared = PreparedJob(JobRequest.build(token_ids=[1]), (1,) * PAGE_SIZE, params)
    job.lengths = [0]
    return job


def test_pages_offered_to_a_pull_are_not_given_to_the_head_of_the_line(
    held_jobs: HeldJobs, page_budget: PageBudget
) -> None:
    """While a pull is under way its pages are spoken for; what it leaves may start the waiting job.

    Both would otherwise come to an engine that has pages for one of them.
    """
    take(held_jobs, "running", 4)
    waiting = take(held_jobs, "waiting", 6, waits=True)
    assert page_budget.budget() == 8
    assert page_budget.fits(waiting)
    with page_budget.offered(8, {}):
        assert not page_budget.fits(waiting)
    take(held_jobs, "pulled meanwhile", 3)
    assert not page_budget.fits(waiting)


def test_waiting_job_does_not_take_an_empty_engine_from_under_a_pull(
    held_jobs: HeldJobs, page_budget: PageBudget
) -> None:
    """A job too big for the free pages has the engine alone, but not while others may come."""
    waiting = take(held_jobs, "waiting", NUM_PAGES, waits=True)
    page_budget.start_anew(NUM_PAGES - 1)
    with page_budget.offered(NUM_PAGES - 1, {}):
        assert not page_budget.fits(waiting)
    assert page_budget.fits(waiting)


class Crowd:
    """Jobs whose prompts are eight shared pages and half a page of their own, in 40 pages.

    Each generates the other half page. `used` counts the pages that the engine has given out.
    """

    NUM_PAGES = 40

    def __init__(self) -> None:
        self.held_jobs = HeldJobs()
        self.page_budget = page_budget_of(self.held_jobs, self.NUM_PAGES)
        self.held_jobs.when_gone(self.page_budget.costs.shares.leave)
        self.used = 0

    def pull(self, own: int, *, shared_pages: int = 0, waits: bool = False) -> HeldJob:
        """Take a tokenised job; `own` makes its tail differ from the others'."""
        pulled = PulledJob(
            job_id=f"j-{own}", epoch=1, attempts=0, priority=1, tenant="t", pages=9 - shared_pages,
            head_of_line=waits, num_logged=0, remaining_ms=None, request=b"", prefix="p",
            shared_pages=shared_pages,
        )  # fmt: skip
        job = self.held_jobs.take(pulled)
        ids = (1,) * (8 * PAGE_SIZE) + (own,) * (PAGE_SIZE // 2)
        params = SamplingParams(max_tokens=PAGE_SIZE // 2)
        job.prepared = PreparedJob(JobRequest.build(token_ids=[1]), ids, params)
        job.taken, job.lengths = Taken(1, 1, 0, [()], [None]), [0]
        self.page_budget.costs.shares.join(job)
        return job

    def use(self, pages: int) -> None:
        """Let the engine give out pages, or take some back."""
        self.used += pages
        free = self.NUM_PAGES - self.used
        self.page_budget.see_stats(EngineStats(self.NUM_PAGES + 1, free, 0, 0, 0))

    def stream(self, job: HeldJob, pages: int) -> None:
        """Let the engine run a job that takes so many pages beside those it finds."""
        self.add(job)
        job.timings.admitted_at = job.timings.first_token_at = 1.0
        self.use(pages)

    def add(self, job: HeldJob) -> None:
        """Let a job go to the engine."""
        job.is_waiting = False
        job.timings.added_at = 1.0
        job.move_to(Phase.RUNNING)


@pytest.fixture
def crowd() -> Crowd:
    """Give an empty engine for jobs of one prefix."""
    return Crowd()


def test_shared_pages_are_promised_once(crowd: Crowd) -> None:
    """Three jobs of nine pages, eight of them shared, need eleven, started or not."""
    jobs = [crowd.pull(own) for own in (5, 6, 7)]
    assert crowd.page_budget.budget() == 40 - 8 - 3
    crowd.stream(jobs[0], 9)
    assert crowd.page_budget.budget() == 40 - 8 - 3
    crowd.stream(jobs[1], 1)
    assert crowd.page_budget.budget() == 40 - 8 - 3
    assert crowd.page_budget.room().carried == {"p"}


def test_shared_pages_stay_promised_when_their_holder_ends(crowd: Crowd) -> None:
    """What the holder gives back may be evicted before the next job of the prefix starts."""
    holder, waiting = crowd.pull(5), crowd.pull(6)
    crowd.stream(holder, 9)
    crowd.add(waiting)
    holder.move_to(Phase.ENDING)
    crowd.use(-9)
    assert crowd.page_budget.budget() == 40 - 8 - 1 - 1
    crowd.held_jobs.drop(holder)
    assert crowd.page_budget.budget() == 40 - 8 - 1
    assert crowd.page_budget.room().carried == {"p"}


def test_ended_job_keeps_from_others_only_what_it_did_not_share(crowd: Crowd) -> None:
    """Until the queue has answered its own page is not free; the rest never was its alone."""
    jobs = [crowd.pull(own) for own in (5, 6)]
    crowd.stream(jobs[0], 9)
    crowd.stream(jobs[1], 1)
    jobs[1].move_to(Phase.ENDING)
    crowd.use(-1)
    assert crowd.page_budget.budget() == 40 - 9 - 1


def test_page_of_the_newest_token_is_not_yet_held(crowd: Crowd) -> None:
    """A token that begins a page was read back before the engine takes that page."""
    job = crowd.pull(5)
    job.prepared = PreparedJob(
        JobRequest.build(token_ids=[1]), (1,) * PAGE_SIZE, SamplingParams(max_tokens=2 * PAGE_SIZE)
    )
    crowd.stream(job, 1)
    for length, pages in ((1, 1), (2, 2), (PAGE_SIZE + 1, 2), (PAGE_SIZE + 2, 3)):
        job.lengths = [length]
        crowd.use(pages - crowd.used)
        assert crowd.page_budget.budget() == 40 - 3, length


def test_choices_have_a_copy_each_of_the_page_in_which_the_prompt_ends(crowd: Crowd) -> None:
    """Full pages of the prompt are shared, the rest of it is not."""
    job = crowd.pull(5)
    for num_tokens, cost in ((32, 2 + 3), (33, 3 + 2 + 3)):
        params = SamplingParams(max_tokens=PAGE_SIZE, n=3)
        job.prepared = PreparedJob(JobRequest.build(token_ids=[1]), (1,) * num_tokens, params)
        assert crowd.page_budget.costs.cost(job) == cost


def test_preempted_job_is_promised_everything_anew(crowd: Crowd) -> None:
    """The pages it gave back are not free: it will ask for them again."""
    [job] = [crowd.pull(5)]
    crowd.stream(job, 9)
    assert crowd.page_budget.budget() == 40 - 9
    job.is_preempted = True
    crowd.use(-9)
    assert crowd.page_budget.budget() == 40 - 9


def test_prefix_that_a_pull_was_told_is_held_stays_promised_meanwhile(crowd: Crowd) -> None:
    """Its last holder may end before the answer brings jobs that count on it."""
    job = crowd.pull(5)
    crowd.stream(job, 9)
    with crowd.page_budget.offered(0, {"p": 8 * PAGE_SIZE}):
        assert crowd.page_budget.budget() == 40 - 9
        crowd.held_jobs.drop(job)
        crowd.use(-9)
        assert crowd.page_budget.budget() == 40 - 8


def test_idle_prefix_is_carried_by_nobody(crowd: Crowd) -> None:
    """When the last job has gone the first one of the next crowd is counted in full."""
    job = crowd.pull(5)
    crowd.held_jobs.drop(job)
    assert crowd.page_budget.room().carried == set()


def test_waiting_job_starts_when_its_own_pages_are_free(crowd: Crowd) -> None:
    """At the head of the line too the pages that others hold for it are not counted."""
    crowd.stream(crowd.pull(5), 9)
    crowd.use(29)
    waiting = crowd.pull(6, waits=True)
    assert crowd.page_budget.budget() == 2
    assert crowd.page_budget.fits(waiting)
    crowd.use(2)
    assert not crowd.page_budget.fits(waiting)


def test_giving_back_one_of_two_sharers_frees_its_own_page_alone(crowd: Crowd) -> None:
    """What the other still holds makes no room; both together make room for all of it."""
    jobs = [crowd.pull(own) for own in (5, 6)]
    crowd.stream(jobs[0], 9)
    crowd.stream(jobs[1], 1)
    crowd.use(28)
    urgent = take(crowd.held_jobs, "urgent", 10, waits=True)
    assert crowd.page_budget.budget() == 2
    assert not crowd.page_budget.has_room(urgent, {jobs[0]})
    assert crowd.page_budget.has_room(urgent, set(jobs))


@pytest.mark.parametrize("holder_leaves", [False, True])
def test_job_is_as_pulled_while_it_shares_what_the_pull_said(
    crowd: Crowd, holder_leaves: bool
) -> None:
    """Whoever comes and goes meanwhile, its exact size decides whether it is unpulled."""
    holder = crowd.pull(5)
    crowd.stream(holder, 9)
    job = crowd.pull(6, shared_pages=8)
    if holder_leaves:
        crowd.held_jobs.drop(holder)
    assert crowd.page_budget.costs.is_as_pulled(job)


def test_job_that_shares_less_than_the_pull_said_is_not_as_pulled(crowd: Crowd) -> None:
    """Its prompt begins otherwise than its prefix promised."""
    crowd.stream(crowd.pull(5), 9)
    job = crowd.pull(6, shared_pages=8)
    crowd.page_budget.costs.shares.leave(job)
    job.prepared = PreparedJob(JobRequest.build(token_ids=[1]), (7,) * 136, SamplingParams())
    crowd.page_budget.costs.shares.join(job)
    assert crowd.page_budget.costs.shares_less(job)
    assert not crowd.page_budget.costs.is_as_pulled(job)


def test_rows_of_an_ended_job_are_free_but_not_without_bound(crowd: Crowd) -> None:
    """The engine runs others meanwhile; as many as it has rows may wait for the queue's answer."""
    for own in range(4):
        crowd.add(crowd.pull(own))
    assert crowd.page_budget.free_rows() == 8 - 4
    for job in crowd.held_jobs.in_phase(Phase.RUNNING):
        job.move_to(Phase.ENDING)
    assert crowd.page_budget.free_rows() == 8
    for own in range(4, 10):
        job = crowd.pull(own)
        crowd.add(job)
        job.move_to(Phase.ENDING)
    assert crowd.page_budget.free_rows() == 2 * 8 - 10
    crowd.held_jobs.drop(job)
    assert crowd.page_budget.free_rows() == 2 * 8 - 9
