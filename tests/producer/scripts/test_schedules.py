"""The schedules of lost, doubled and late calls that break weaker protocols, one test each.

Each follows a job through the real scripts and shows that the rule which closes the schedule holds:
one terminal entry, every index once, nothing held for ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.stubs import (
    StubWorker,
    a_job,
    indices,
    num_ends,
    orphan_of,
    owned_end,
    pulled,
    raw,
    submit,
)

from tokenbus.producer.scripts import STALE_ANSWER_S, Takeover
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.replies import LogStatus, PullStatus, RequeueStatus

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts

J = "j-1"


class LateClock:
    """A monotonic clock that a test moves on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


async def test_marker_keeps_the_index(scripts: Scripts) -> None:
    """After a hand-back the new owner goes on from the last token, not from the marker's id."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await worker.append(J, 1, 1, 2)
    assert await scripts.lease.requeue(worker.name, J, 1) is RequeueStatus.WAITING
    assert (await worker.pull()).jobs[0].epoch == 2
    assert (await worker.start(J, 2)).last == 2
    assert (await worker.append(J, 2, 3, 3)).status is LogStatus.OK
    assert await indices(scripts, J) == [1, 2, 3]


async def test_repeated_takeover_writes_one_marker(scripts: Scripts) -> None:
    """A takeover whose reply was lost is repeated without harm, and so is that of two reapers."""
    worker = await pulled(scripts, J)
    assert (await worker.start(J, 1)).status is LogStatus.OK
    assert (await worker.start(J, 1)).status is LogStatus.LOG
    reaping = Takeover(J, 2, "reaper", create=False)
    first, second = await scripts.log.takeover([reaping, reaping])
    assert (first.status, second.status) == (LogStatus.OK, LogStatus.LOG)
    assert await raw(scripts).xlen(scripts.keys.log(J)) == 2


async def test_end_is_never_already_because_of_the_index(scripts: Scripts) -> None:
    """An end behind a landed append answers with the gap and is written after it, once."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await worker.append(J, 1, 1, 2)
    behind = await worker.end(J, 1, 0, "length")
    assert (behind.status, behind.last) == (LogStatus.GAP, 2)
    assert await num_ends(scripts, J) == 0
    assert (await worker.end(J, 1, 2)).status is LogStatus.OK


async def test_nothing_follows_the_terminal_entry(scripts: Scripts) -> None:
    """An end whose reply was lost, and an append that comes late, change nothing."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await worker.append(J, 1, 1, 2)
    await worker.end(J, 1, 2)
    assert (await worker.end(J, 1, 2)).status is LogStatus.ALREADY
    assert (await worker.append(J, 1, 3, 3)).status is LogStatus.ALREADY
    assert (await worker.append(J, 2, 3, 3)).status is LogStatus.FENCED
    assert await num_ends(scripts, J) == 1
    assert await indices(scripts, J) == [1, 2]


async def test_end_without_an_owner_takes_its_place_from_the_log(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A job that was handed back and cancelled ends at a higher epoch than its log's."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await worker.append(J, 1, 1, 2)
    await scripts.lease.requeue(worker.name, J, 1)
    assert await completion.cancel(J) == "ended"
    events = await scripts.log.events(J) or []
    assert (events[-1].epoch, events[-1].start, events[-1].to) == (2, 3, 2)


async def test_lost_marker_is_written_again(scripts: Scripts) -> None:
    """An owner whose marker was rolled back is told `behind`, takes over again and goes on."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await scripts.lease.requeue(worker.name, J, 1)
    await worker.pull()
    key = scripts.keys.log(J)
    before = await raw(scripts).dump(key)
    await worker.start(J, 2)
    await raw(scripts).restore(key, 0, before, replace=True)
    assert (await worker.append(J, 2, 1, 1)).status is LogStatus.BEHIND
    assert (await worker.start(J, 2)).status is LogStatus.OK
    assert (await worker.append(J, 2, 1, 1)).status is LogStatus.OK


async def test_fenced_owner_gives_its_held_job_back(scripts: Scripts) -> None:
    """An owner fenced by a reaper that died requeues its own entry; the job is pulled again."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await scripts.log.takeover([Takeover(J, 2, "dead-reaper", create=False)])
    fenced = await worker.append(J, 1, 1, 1)
    assert (fenced.status, fenced.epoch) == (LogStatus.FENCED, 2)
    status = await scripts.lease.requeue(worker.name, J, 1, marker_epoch=fenced.epoch)
    assert status is RequeueStatus.WAITING
    [again] = (await worker.pull()).jobs
    assert again.epoch == 3
    assert (await worker.start(J, 3)).status is LogStatus.OK


async def test_late_pull_takes_nothing_after_a_reconcile(scripts: Scripts) -> None:
    """A pull of before the reconcile that lands after it is answered `reconcile`, empty."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await submit(scripts, a_job(J))
    old_serial = worker.serial
    await worker.reconcile()
    late = StubWorker(scripts, worker.name, old_serial)
    reply = await late.pull()
    assert (reply.status, reply.jobs) == (PullStatus.RECONCILE, ())
    assert len((await worker.pull()).jobs) == 1


async def test_late_reconcile_does_not_bring_its_serial_back(scripts: Scripts) -> None:
    """A reconcile that lands after a newer one leaves the newer serial in force."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await worker.reconcile()
    worker.serial = 0
    await worker.reconcile()
    assert (await worker.pull()).status is PullStatus.RECONCILE


async def test_lost_pull_shows_in_the_reconcile(scripts: Scripts) -> None:
    """What a pull with a lost reply took is in the answer to the reconcile, before any new pull."""
    worker = await pulled(scripts, J)
    held = await worker.reconcile()
    assert [(job.job_id, job.epoch) for job in held] == [(J, 1)]


async def test_flag_of_a_dead_owner_ends_the_job(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A cancel noted on a held job survives its owner: requeue sends the job to its end."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await worker.append(J, 1, 1, 1)
    assert await completion.cancel(J) == "held"
    await worker.die()
    orphan = await orphan_of(scripts)
    assert (
        await completion.reap("reaper", orphan, 0.0 + completion._clock()) is RequeueStatus.ENDING
    )
    assert await completion.cancel(J) == "ended"
    assert (await worker.pull()).jobs == ()
    assert await num_ends(scripts, J) == 1


async def test_commit_outlives_the_completion(scripts: Scripts, completion: JobCompletion) -> None:
    """A committed log has no short TTL; a reaper finds the terminal entry and completes."""
    worker = await pulled(scripts, J)
    await worker.run(J, 1, 2)
    for key in (scripts.keys.log(J), scripts.keys.result(J)):
        assert await raw(scripts).ttl(key) > 24 * 3600
    await worker.die()
    assert await completion.reap("reaper", await orphan_of(scripts), completion._clock()) is None
    record = await scripts.queue.record(J)
    assert record is not None
    assert record.state == "done"
    assert await num_ends(scripts, J) == 1
    assert await raw(scripts).ttl(scripts.keys.log(J)) <= 120


async def test_tick_on_a_done_job_takes_only_the_last_steps(scripts: Scripts) -> None:
    """An ending whose log has expired after completion gets no second terminal entry."""
    await submit(scripts, a_job(J))
    completion = JobCompletion(scripts)
    reply = await scripts.queue.cancel(J)
    assert reply.ending is not None
    events = await scripts.log.events(J)
    assert events is None
    await completion.end_unowned(reply.ending, completion._clock())
    await raw(scripts).delete(scripts.keys.log(J), scripts.keys.result(J))
    await raw(scripts).zadd(scripts.keys.of("ending"), {J: 1})
    assert await completion.tick() is False
    assert await scripts.log.events(J) is None
    assert await raw(scripts).zcard(scripts.keys.of("ending")) == 0


async def test_old_answers_start_nothing(scripts: Scripts) -> None:
    """A chain that slept on its answer makes no end and no takeover from it."""
    clock = LateClock()
    completion = JobCompletion(scripts, clock=clock)
    worker = await pulled(scripts, J)
    await worker.die()
    orphan = await orphan_of(scripts)
    clock.now_s = STALE_ANSWER_S + 0.1
    assert await completion.reap("reaper", orphan, 0.0) is None
    assert len(await scripts.lease.scan()) == 1
    await scripts.lease.requeue(worker.name, J, 1)
    reply = await scripts.queue.cancel(J)
    assert reply.ending is not None
    assert await completion.end_unowned(reply.ending, 0.0) is None
    assert await num_ends(scripts, J) == 0


async def test_owner_does_not_create_an_expired_log(scripts: Scripts) -> None:
    """Append and end of an owner, and a reaper's takeover, never bring a log back to life."""
    worker = await pulled(scripts, J)
    assert (await worker.append(J, 1, 1, 1)).status is LogStatus.NOLOG
    assert (await worker.end(J, 1, 0)).status is LogStatus.NOLOG
    [reaped] = await scripts.log.takeover([Takeover(J, 2, "reaper", create=False)])
    assert reaped.status is LogStatus.NOLOG
    assert await raw(scripts).exists(scripts.keys.log(J)) == 0


async def test_chain_that_outlived_a_rollback_ends_nothing_unknown(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A completion for a job that the server no longer knows does nothing and leaks nothing."""
    await completion.complete(J, owned_end(J, 1, 0).finish)
    found = [key async for key in raw(scripts).scan_iter(f"{{tb:{scripts.keys.pool}*")]
    assert found == []


async def test_delayed_append_moves_the_writer_forward(scripts: Scripts) -> None:
    """A writer that is behind a landed append is sent to the token after it, not back."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await worker.append(J, 1, 1, 3)
    overlapping = await worker.append(J, 1, 2, 5)
    assert (overlapping.status, overlapping.last) == (LogStatus.GAP, 3)
    assert (await worker.append(J, 1, 2, 3)).status is LogStatus.ALREADY
    assert (await worker.append(J, 1, 6, 6)).status is LogStatus.GAP
    assert (await worker.append(J, 1, 4, 5)).status is LogStatus.OK
    assert await indices(scripts, J) == [1, 2, 3, 4, 5]


async def test_pool_behind_its_log_catches_up(scripts: Scripts) -> None:
    """A record below its log's epoch is lifted by the fenced owner's hand-back in one bounce."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await scripts.log.takeover([Takeover(J, 7, "of before the rollback")])
    fenced = await worker.append(J, 1, 1, 1)
    await scripts.lease.requeue(worker.name, J, 1, marker_epoch=fenced.epoch)
    assert (await worker.pull()).jobs[0].epoch == 8
    assert (await worker.start(J, 8)).status is LogStatus.OK


async def test_end_without_an_owner_is_lifted_above_its_log(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A job in `ending` whose record was rolled back below its log still ends, once."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await scripts.lease.requeue(worker.name, J, 1)
    await scripts.log.takeover([Takeover(J, 9, "of before the rollback")])
    assert await completion.cancel(J) == "ended"
    assert await num_ends(scripts, J) == 1
