"""Who is blamed for dead engines and vanished workers: the killers are found, and nobody else."""

from __future__ import annotations

import random
from math import log2
from typing import TYPE_CHECKING, Any

import pytest
from workers.blamed_pool import BlamedPool, Rider
from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.producer.scripts.evidence import Crash, Crowd
from tokenbus.producer.scripts.replies import JobState, RequeueStatus
from tokenbus.producer.scripts.source import read_part

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion

Board = dict[str, Rider]
NUM_JOBS, NUM_TOKENS = 64, 300
FAULTS: dict[str, Callable[[Board], bool]] = {
    "at its start": lambda board: "k" in board,
    "at token 30": lambda board: "k" in board and board["k"].last >= 30,
    "30 tokens after each start": lambda board: "k" in board and board["k"].made >= 30,
    "with another": lambda board: "k" in board and "l" in board,
}
# What is tried is the scripts' arithmetic, which is the same on every kind of server.
one_server = pytest.mark.parametrize("server", ["valkey"], indirect=True)


def _names(num_jobs: int, killer: int, accomplice: int) -> list[str]:
    names = [f"j-{number}" for number in range(num_jobs)]
    names[killer], names[accomplice] = "k", "l"
    return names


@one_server
@pytest.mark.parametrize("fault", FAULTS)
async def test_killer_among_many_is_found_by_halves(
    scripts: Scripts, completion: JobCompletion, fault: str
) -> None:
    """It costs few engines, nobody else is taken for it, and the others hardly wait."""
    await submit(scripts, *(a_job(name) for name in _names(NUM_JOBS, 41, 9)))
    pool = BlamedPool(scripts, completion, FAULTS[fault], NUM_TOKENS)
    await pool.hire()
    await pool.run(NUM_JOBS, 3 * NUM_TOKENS)
    assert len(pool.poisoned) == 1
    assert pool.poisoned <= {"k", "l"}
    assert pool.num_deaths <= 2 * log2(NUM_JOBS) + 4


@one_server
@pytest.mark.parametrize("fault", FAULTS)
async def test_killer_is_found_over_several_workers(
    scripts: Scripts, completion: JobCompletion, fault: str
) -> None:
    """The evidence lies in the record, so any worker goes on with the search.

    Two that kill only together may have been kept apart by then, which does as well.
    """
    await submit(scripts, *(a_job(name) for name in _names(NUM_JOBS, 41, 9)))
    pool = BlamedPool(scripts, completion, FAULTS[fault], NUM_TOKENS, num_rows=40)
    await pool.hire(2)
    await pool.run(NUM_JOBS, 3 * NUM_TOKENS)
    assert pool.poisoned <= {"k", "l"}
    assert pool.poisoned or fault == "with another"
    assert pool.num_deaths <= 2 * log2(NUM_JOBS) + 4


@one_server
async def test_killer_among_more_jobs_than_fit(scripts: Scripts, completion: JobCompletion) -> None:
    """Those that wait behind the suspects run meanwhile."""
    num_jobs, num_rows = 300, 64
    await submit(scripts, *(a_job(name) for name in _names(num_jobs, 133, 9)))
    pool = BlamedPool(scripts, completion, FAULTS["at its start"], 60, num_rows)
    await pool.hire()
    await pool.run(num_jobs, 3 * 60 * num_jobs // num_rows)
    assert pool.poisoned == {"k"}
    assert pool.num_deaths <= 2 * log2(num_rows) + 4


@one_server
async def test_two_killers_are_both_found(scripts: Scripts, completion: JobCompletion) -> None:
    """Each kills without the other."""
    await submit(scripts, *(a_job(name) for name in _names(NUM_JOBS, 41, 9)))
    pool = BlamedPool(scripts, completion, lambda board: "k" in board or "l" in board, NUM_TOKENS)
    await pool.hire()
    await pool.run(NUM_JOBS, 3 * NUM_TOKENS)
    assert pool.poisoned == {"k", "l"}
    assert pool.num_deaths <= 2 * (2 * log2(NUM_JOBS) + 4)


@one_server
async def test_accidents_find_nobody_guilty(scripts: Scripts, completion: JobCompletion) -> None:
    """Engines that die now and then, whatever is on board, end no job."""
    chance = random.Random(5)
    await submit(scripts, *(a_job(f"j-{number}") for number in range(NUM_JOBS)))
    pool = BlamedPool(scripts, completion, lambda _: chance.random() < 0.01, NUM_TOKENS)
    await pool.hire(2)
    await pool.run(NUM_JOBS, 10 * NUM_TOKENS)
    assert pool.num_deaths > 4
    assert pool.poisoned == set()


async def _vanish(scripts: Scripts, completion: JobCompletion, num_tokens: int) -> None:
    """Let a new worker pull all there is, log so many tokens of each and be reaped."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    for job in (await worker.pull()).jobs:
        last = (await worker.start(job.job_id, job.epoch)).last
        if num_tokens:
            await worker.append(job.job_id, job.epoch, last + 1, last + num_tokens)
    await worker.die()
    for orphan in await scripts.lease.scan():
        await completion.reap("reaper", orphan, completion._clock())


async def _attempts(scripts: Scripts, job_id: str) -> int:
    record = await scripts.queue.record(job_id)
    assert record is not None
    assert record.state is JobState.WAITING
    return record.attempts


async def test_workers_that_vanish_blame_nobody_who_makes_progress(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """However often its worker is killed, a job that streams on between is no suspect."""
    await submit(scripts, a_job("j-0"), a_job("j-1"))
    for _ in range(20):
        await _vanish(scripts, completion, 2)
    assert [await _attempts(scripts, name) for name in ("j-0", "j-1")] == [1, 1]
    worker = StubWorker(scripts)
    await worker.reconcile()
    pulled = (await worker.pull()).jobs
    assert [job.evidence.ride for job in pulled if job.evidence] == [0, 0]


async def test_worker_that_vanishes_is_half_the_evidence_of_an_engine(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """Without a token in between the fourth makes a suspect, where two engines would do."""
    await submit(scripts, a_job("j-0"))
    attempts = []
    for _ in range(7):
        await _vanish(scripts, completion, 0)
        attempts.append(await _attempts(scripts, "j-0"))
    assert attempts == [1, 1, 1, 2, 2, 2, 2]
    await _vanish(scripts, completion, 0)
    record = await scripts.queue.record("j-0")
    assert record is not None
    assert (record.state, record.attempts) == (JobState.ENDING, 3)


async def test_job_that_had_not_begun_is_not_blamed(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """Its log has no marker of the dead worker's epoch."""
    await submit(scripts, a_job("j-0"))
    await _vanish(scripts, completion, 1)
    assert await _attempts(scripts, "j-0") == 1
    for _ in range(9):
        worker = StubWorker(scripts)
        await worker.reconcile()
        await worker.pull()
        await worker.die()
        for orphan in await scripts.lease.scan():
            await completion.reap("reaper", orphan, completion._clock())
    assert await _attempts(scripts, "j-0") == 1


async def test_dead_reaper_changes_no_evidence(scripts: Scripts, completion: JobCompletion) -> None:
    """One that fenced the log and died leaves to see that the job had begun."""
    await submit(scripts, a_job("j-0"))
    worker = StubWorker(scripts)
    await worker.reconcile()
    [job] = (await worker.pull()).jobs
    await worker.start("j-0", job.epoch)
    await worker.die()
    [orphan] = await scripts.lease.scan()
    for _ in range(2):
        reply = await StubWorker(scripts).start("j-0", orphan.epoch + 1)
        assert reply.epoch_before in (orphan.epoch, 0)
    await completion.reap("reaper", orphan, completion._clock())
    assert await _attempts(scripts, "j-0") == 1


async def test_job_whose_log_is_broken_three_times_ends(scripts: Scripts) -> None:
    """Nobody else is to blame for that, and it is tried again before."""
    await submit(scripts, a_job("j-0"))
    worker = StubWorker(scripts)
    await worker.reconcile()
    statuses = []
    for _ in range(3):
        [job] = (await worker.pull()).jobs
        statuses.append(
            await scripts.lease.requeue(worker.name, "j-0", job.epoch, crash=Crash(cause="log"))
        )
    assert statuses == [RequeueStatus.WAITING, RequeueStatus.WAITING, RequeueStatus.ENDING]


async def test_job_beside_three_dead_engines_in_a_row_is_a_suspect_too(scripts: Scripts) -> None:
    """A second killer does not ride along for ever while others are searched."""
    await submit(scripts, a_job("j-0"))
    worker = StubWorker(scripts)
    await worker.reconcile()
    rides = []
    for _ in range(4):
        [job] = (await worker.pull()).jobs
        rides.append(job.evidence.ride if job.evidence else 0)
        beside = Crash(cause="engine", num_suspected=4, num_beside=12, is_beside=True)
        await scripts.lease.requeue(worker.name, "j-0", job.epoch, crash=beside)
    assert rides == [0, 0, 0, 8]


# What made a job a suspect by a death at which nothing else was on board: how many were suspected
# with it at each death, and whether it had passed its place before.
TRAILS: dict[str, list[tuple[int, Any]]] = {
    "second in a row": [(2, ""), (1, "")],
    "fourth in all": [(2, "all"), (2, "all"), (1, "all"), (1, "all")],
}


@one_server
@pytest.mark.parametrize("trail", TRAILS)
async def test_death_that_makes_a_suspect_is_no_strike(scripts: Scripts, trail: str) -> None:
    """One accident counts once: in its runs alone a suspect survives one, and not two."""
    await submit(scripts, a_job("j-0"))
    worker = StubWorker(scripts)
    await worker.reconcile()
    statuses, rides = [], []
    for num_suspected, passed in [*TRAILS[trail], (1, ""), (1, "")]:
        [job] = (await worker.pull()).jobs
        rides.append(job.evidence.ride if job.evidence else 0)
        crash = Crash(cause="engine", num_suspected=num_suspected)
        statuses.append(
            await scripts.lease.requeue(worker.name, "j-0", job.epoch, crash=crash, passed=passed)
        )
    num_before = len(TRAILS[trail])
    assert rides == [0] * num_before + [1, 1]
    assert statuses == [RequeueStatus.WAITING] * (num_before + 1) + [RequeueStatus.ENDING]


async def test_waiting_suspect_can_be_cancelled(scripts: Scripts) -> None:
    """It lies in a list of its own, which goes with the last of them."""
    await submit(scripts, a_job("j-0"))
    worker = StubWorker(scripts)
    await worker.reconcile()
    for _ in range(2):
        [job] = (await worker.pull()).jobs
        await scripts.lease.requeue(worker.name, "j-0", job.epoch, crash=Crash(cause="engine"))
    suspects = scripts.keys.of("suspects")
    assert await raw(scripts).xlen(suspects) == 1
    assert (await scripts.queue.cancel("j-0")).status == "ending"
    assert await raw(scripts).exists(suspects) == 0
    assert not any((await scripts.lease.load()).values())


async def test_forged_suspect_disturbs_nobody(scripts: Scripts) -> None:
    """An entry that no record names is a dead letter, whatever it says."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, a_job("j-0"))
    for fields in ({"job": "ghost", "ride": "x", "priority": "9"}, {"ride": "-1"}, {"": ""}):
        await raw(scripts).xadd(scripts.keys.of("suspects"), fields)
    assert [job.job_id for job in (await worker.pull()).jobs] == ["j-0"]
    assert await raw(scripts).exists(scripts.keys.of("suspects")) == 0
    assert await raw(scripts).xlen(scripts.keys.of("dead")) == 3


async def test_calls_of_the_release_before_mean_what_they_meant(scripts: Scripts) -> None:
    """Without the later arguments a crash is a vanished worker, and suspects run alone."""
    run, prefix = scripts.lease._runner.run_packed, scripts.keys.prefix
    await submit(scripts, a_job("j-0"))
    worker = StubWorker(scripts)
    await worker.reconcile()
    budget: list[str | int] = [worker.name, 1, 99, 16, 999, 9, 1, 16, 1000, 2, 0, 99, 0, 0, 0, 0]
    for epoch in range(1, 5):
        status, [job], *_ = await run("pull", prefix, budget)
        assert (status, job[0]) == (b"jobs", b"j-0")
        given: list[str | int] = [worker.name, "j-0", epoch, 0, 0, 1, 3]
        assert await run("requeue", prefix, given) == b"waiting"
    assert await _attempts(scripts, "j-0") == 2
    await submit(scripts, a_job("j-1"))
    status, [job], *_ = await run("pull", prefix, budget)
    assert job[0] == b"j-0"
    assert (await run("pull", prefix, budget))[0] == b"suspect"


async def test_record_of_the_release_before_is_read(scripts: Scripts) -> None:
    """It counted crashes and no more: from the second on the job runs alone."""
    await submit(scripts, a_job("j-0"), a_job("j-1"))
    await raw(scripts).hset(scripts.keys.of("job", "j-0"), "attempts", 2)
    worker = StubWorker(scripts)
    await worker.reconcile()
    [suspect] = (await worker.pull()).jobs
    assert suspect.job_id == "j-0"
    assert suspect.evidence is not None
    assert (suspect.evidence.ride, suspect.evidence.is_alone) == (1, True)
    assert (await worker.pull(crowd=Crowd(1, 1, 1))).jobs[0].job_id == "j-1"


def test_arguments_that_came_later_come_last() -> None:
    """A call of the release before is the beginning of one of this."""
    assert list(read_part("requeue").signature.kinds)[:7] == [
        *("worker", "job", "epoch", "marker", "logged", "crashed", "max_attempts"),
    ]
    assert list(read_part("pull").signature.kinds)[-1] == "lists"
