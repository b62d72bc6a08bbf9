"""What a pull takes: by pages, by priority, one head-of-line job, suspects alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from workers.stubs import PAGE_SIZE, StubWorker, a_job, raw, submit

from tokenbus.producer.scripts.evidence import Crash, Crowd
from tokenbus.producer.scripts.replies import JobState, PullStatus, RequeueStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion
    from tokenbus.producer.scripts.replies import PulledJob


@pytest.fixture
async def worker(scripts: Scripts) -> StubWorker:
    """Give a reconciled worker."""
    made = StubWorker(scripts)
    await made.reconcile()
    return made


async def test_pull_takes_what_fits_and_no_more(scripts: Scripts, worker: StubWorker) -> None:
    """Jobs of three pages each fill a budget of ten with three jobs."""
    await submit(scripts, *(a_job(f"j-{i}") for i in range(6)))
    reply = await worker.pull(pages=10, take_head_of_line=False)
    assert [job.pages for job in reply.jobs] == [3, 3, 3]
    assert [job.job_id for job in reply.jobs] == ["j-0", "j-1", "j-2"]


async def test_one_job_that_does_not_fit_is_taken_as_head_of_line(
    scripts: Scripts, worker: StubWorker
) -> None:
    """The fair head that does not fit comes along marked; behind it only what fits passes."""
    await submit(
        scripts,
        a_job("big", prompt_tokens=160),
        a_job("big-2", prompt_tokens=160),
        a_job("small"),
    )
    reply = await worker.pull(pages=4)
    assert [(job.job_id, job.head_of_line) for job in reply.jobs] == [
        ("big", True),
        ("small", False),
    ]
    assert (await worker.pull(pages=4, take_head_of_line=False)).status is PullStatus.FULL


async def test_expected_output_and_cache_lower_the_cost(
    scripts: Scripts, worker: StubWorker
) -> None:
    """A lane's estimate replaces max_tokens, and cached tokens of the prefix are not counted."""
    job = {"prompt_tokens": 160, "output_tokens": 320, "n": 2, "prefix": "shop"}
    await submit(scripts, a_job("j-0", **job), a_job("j-1", **job), a_job("j-2", **job))
    [full] = (await worker.pull(max_jobs=1)).jobs
    [learned] = (await worker.pull(max_jobs=1, expected_output={"1:acme": 32})).jobs
    [cached] = (await worker.pull(max_jobs=1, default_output=32, cached={"shop": 130})).jobs
    assert (full.pages, learned.pages, cached.pages) == (10 + 40, 10 + 4, 2 + 4)


async def test_idle_prefix_is_counted_with_the_first_job_of_it(
    scripts: Scripts, worker: StubWorker
) -> None:
    """Nobody holds its pages before that job, and the next ones of the same pull share them."""
    job = {"prompt_tokens": 160, "prefix": "shop"}
    await submit(scripts, *(a_job(f"j-{i}", **job) for i in range(4)))
    reply = await worker.pull(pages=16, cached={"shop": 130}, idle=["shop"])
    assert [(job.pages, job.shared_pages) for job in reply.jobs] == [(11, 0), (3, 8), (3, 8)]


async def test_head_of_line_job_leaves_its_prefix_idle(
    scripts: Scripts, worker: StubWorker
) -> None:
    """It has no pages yet that the next job could share."""
    job = {"prompt_tokens": 160, "prefix": "shop"}
    await submit(scripts, *(a_job(f"j-{i}", **job) for i in range(2)))
    reply = await worker.pull(pages=8, cached={"shop": 130}, idle=["shop"])
    assert [(job.pages, job.head_of_line) for job in reply.jobs] == [(11, True)]


async def test_choices_of_all_jobs_fit_the_rows(scripts: Scripts, worker: StubWorker) -> None:
    """A job that needs more rows than are left waits at the head of the line, one more is left."""
    await submit(scripts, *(a_job(f"j-{i}", n=3) for i in range(4)), a_job("one"))
    reply = await worker.pull(max_rows=7)
    assert [(job.job_id, job.num_choices, job.head_of_line) for job in reply.jobs] == [
        ("j-0", 3, False),
        ("j-1", 3, False),
        ("j-2", 3, True),
        ("one", 1, False),
    ]


async def test_resumed_job_counts_its_logged_tokens(scripts: Scripts, worker: StubWorker) -> None:
    """A job handed back with tokens in its log is counted with at least a page beyond them."""
    await submit(scripts, a_job("j-0", output_tokens=160))
    await worker.pull()
    await scripts.lease.requeue(worker.name, "j-0", 1, num_logged=64)
    [job] = (await worker.pull(default_output=16)).jobs
    assert (job.pages, job.num_logged) == (2 + 5, 64)


async def test_priorities_are_served_in_order_after_the_front(
    scripts: Scripts, worker: StubWorker
) -> None:
    """What was handed back goes first, then priority 0 to 2."""
    await submit(scripts, a_job("back", priority=2))
    await worker.pull()
    await submit(scripts, *(a_job(f"p{p}", priority=p) for p in (2, 0, 1)))
    await scripts.lease.requeue(worker.name, "back", 1)
    assert [job.job_id for job in (await worker.pull()).jobs] == ["back", "p0", "p1", "p2"]


async def test_empty_pull_says_so_and_work_rings_the_bell(
    scripts: Scripts, worker: StubWorker
) -> None:
    """A pull that finds nothing answers `empty`; a submit then puts one token on the bell."""
    wakeup = scripts.keys.of("bell")
    assert (await worker.pull()).status is PullStatus.EMPTY
    assert await raw(scripts).llen(wakeup) == 0
    await submit(scripts, a_job(), a_job())
    assert await raw(scripts).llen(wakeup) == 1


async def test_pull_that_leaves_work_behind_rings_again(
    scripts: Scripts, worker: StubWorker
) -> None:
    """Work left by a worker's budget is announced to the others; who takes the rest is told."""
    await submit(scripts, a_job(), a_job())
    await raw(scripts).delete(scripts.keys.of("bell"))
    first = await worker.pull(max_jobs=1)
    assert (len(first.jobs), first.is_left) == (1, True)
    assert await raw(scripts).llen(scripts.keys.of("bell")) == 1
    await raw(scripts).delete(scripts.keys.of("bell"))
    rest = await worker.pull(max_jobs=1)
    assert (len(rest.jobs), rest.is_left) == (1, False)
    assert await raw(scripts).llen(scripts.keys.of("bell")) == 0


async def test_job_larger_than_every_pool_fails_after_its_time(
    scripts: Scripts, worker: StubWorker
) -> None:
    """A job no live worker could ever hold ends as too_large; until then it waits."""
    await submit(scripts, a_job("huge", output_tokens=10**6), a_job("small"))
    assert [job.job_id for job in (await worker.pull()).jobs] == ["small"]
    reply = await worker.pull(too_large_after_ms=0)
    [ending] = reply.endings
    assert ending.job_id == "huge"
    assert '"too_large"' in ending.finish
    assert await raw(scripts).exists(scripts.keys.lane(1, "acme")) == 0


async def test_job_too_large_here_waits_for_a_larger_worker(
    scripts: Scripts, worker: StubWorker
) -> None:
    """While a worker large enough lives, a smaller one leaves the job alone."""
    larger = StubWorker(scripts)
    await larger.reconcile(pages=10**6)
    await submit(scripts, a_job("huge", output_tokens=10**6))
    for _ in range(2):
        reply = await worker.pull(too_large_after_ms=0)
        assert (reply.jobs, reply.endings) == ((), ())
    assert reply.status is PullStatus.FULL


async def test_too_big_after_tokenising_is_undone(scripts: Scripts, worker: StubWorker) -> None:
    """Undo refunds the charge, keeps the attempt uncounted and stores the exact prompt length."""
    await submit(scripts, a_job("j-0"))
    await worker.pull()
    record = scripts.keys.of("job", "j-0")
    assert await raw(scripts).hget(record, "charge") == b"48"
    status = await scripts.lease.unpull(worker.name, "j-0", 1, prompt_tokens=320)
    assert status is RequeueStatus.WAITING
    assert await raw(scripts).hget(record, "charge") == b"0"
    [job] = (await worker.pull()).jobs
    assert (job.pages, job.attempts, job.epoch) == (21, 0, 2)
    assert await raw(scripts).hget(record, "charge") == b"336"


async def test_job_that_shared_less_than_counted_is_counted_in_full_after_its_undo(
    scripts: Scripts, worker: StubWorker
) -> None:
    """It comes back as a job of no prefix, so that it is not undone for the same reason again."""
    await submit(scripts, a_job("j-0", prompt_tokens=160, prefix="shop"))
    shop = {"shop": 130}
    [first] = (await worker.pull(cached=shop)).jobs
    await scripts.lease.unpull(worker.name, "j-0", 1, prompt_tokens=160, loses_prefix=True)
    [again] = (await worker.pull(cached=shop)).jobs
    assert (first.pages, first.prefix) == (3, "shop")
    assert (again.pages, again.shared_pages, again.prefix) == (11, 0, "")


async def crash(scripts: Scripts, completion: JobCompletion, worker: StubWorker) -> None:
    """Let a worker die and its jobs be reaped."""
    await worker.die()
    for orphan in await scripts.lease.scan():
        await completion.reap("reaper", orphan, completion._clock())


async def crash_engine(scripts: Scripts, worker: StubWorker, jobs: Sequence[PulledJob]) -> None:
    """Let the engine of a worker die with these jobs on board."""
    crash = Crash(cause="engine", num_suspected=len(jobs))
    for job in jobs:
        await scripts.lease.requeue(worker.name, job.job_id, job.epoch, crash=crash)


async def test_suspect_waits_for_an_empty_worker(scripts: Scripts, worker: StubWorker) -> None:
    """A worker that holds jobs is told that a suspect waits; one that is empty gets it alone."""
    await submit(scripts, a_job("mine"))
    await worker.pull()
    await submit(scripts, a_job("killer"))
    doomed = StubWorker(scripts)
    await doomed.reconcile()
    for _ in range(2):
        await crash_engine(scripts, doomed, (await doomed.pull()).jobs)
    assert (await worker.pull(crowd=Crowd())).status is PullStatus.SUSPECT
    await submit(scripts, a_job("other"))
    [alone] = (await doomed.pull()).jobs
    assert alone.job_id == "killer"
    assert alone.evidence is not None
    assert alone.evidence.is_alone
    assert [job.job_id for job in (await worker.pull()).jobs] == ["other"]


async def test_third_death_alone_is_poison(scripts: Scripts, completion: JobCompletion) -> None:
    """A job alone on board of three engines ends `failed(poison)` and is a dead letter."""
    await submit(scripts, a_job("killer"))
    worker = StubWorker(scripts)
    await worker.reconcile()
    for _ in range(3):
        [job] = (await worker.pull()).jobs
        await worker.start("killer", job.epoch)
        await crash_engine(scripts, worker, [job])
    record = await scripts.queue.record("killer")
    assert record is not None
    assert (record.state, record.attempts) == (JobState.ENDING, 3)
    assert await completion.cancel("killer") == "done"
    finish = (await scripts.log.events("killer") or [])[-1].finish
    assert finish is not None
    assert finish.error is not None
    assert finish.error.code == "poison"
    [(_, letter)] = await raw(scripts).xrange(scripts.keys.of("dead"))
    assert letter[b"job"] == b"killer"


async def test_hand_back_counts_no_attempt(scripts: Scripts, worker: StubWorker) -> None:
    """Drains and preemptions to the queue may repeat for ever."""
    await submit(scripts, a_job("j-0"))
    for epoch in range(1, 6):
        [job] = (await worker.pull()).jobs
        assert (job.epoch, job.attempts) == (epoch, 0)
        await scripts.lease.requeue(worker.name, "j-0", epoch)


async def test_dead_worker_is_struck_off_once_empty(
    scripts: Scripts, completion: JobCompletion, worker: StubWorker
) -> None:
    """A worker leaves the set of workers only when its lease and its held jobs are gone."""
    await submit(scripts, a_job())
    await worker.pull()
    await worker.die()
    assert len(await scripts.lease.scan()) == 1
    await crash(scripts, completion, worker)
    assert await scripts.lease.scan() == []
    assert (
        await raw(scripts).exists(
            scripts.keys.of("workers"), scripts.keys.of("worker", worker.name)
        )
        == 0
    )


async def test_pull_looks_at_a_bounded_number_of_entries(
    scripts: Scripts, worker: StubWorker
) -> None:
    """Of many jobs that do not fit, a pull looks at 64 and leaves the rest for later."""
    big = [a_job(f"b-{i}", prompt_tokens=100 * PAGE_SIZE) for i in range(70)]
    await submit(scripts, *big, a_job("small"))
    assert (await worker.pull(pages=5, take_head_of_line=False)).status is PullStatus.FULL
