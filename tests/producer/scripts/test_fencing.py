"""Fencing, reaping and batches of the log scripts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from workers.stubs import StubWorker, a_job, indices, orphan_of, pulled, raw, submit, tokens

from tokenbus.producer.scripts.log import Takeover
from tokenbus.producer.scripts.replies import LogStatus, RequeueStatus

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion
    from tokenbus.producer.scripts.replies import LogReply

J = "j-1"


async def test_log_always_wears_its_belt(scripts: Scripts) -> None:
    """A log has a TTL from its marker on, renewed while it grows, so that none leaks for ever."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    key = scripts.keys.log(J)
    await worker.append(J, 1, 1, 1)
    assert await raw(scripts).ttl(key) > 0
    for write in (worker.append(J, 1, 2, 300), worker.end(J, 1, 300)):
        await raw(scripts).persist(key)
        await write
        assert await raw(scripts).ttl(key) > 0


async def test_two_reapers_count_one_crash(scripts: Scripts, completion: JobCompletion) -> None:
    """Of two reapers one gives the job back, the other is refused; one attempt is counted."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    await worker.die()
    orphan = await orphan_of(scripts)
    now = completion._clock()
    outcomes = await asyncio.gather(
        completion.reap("r1", orphan, now), completion.reap("r2", orphan, now)
    )
    assert sorted(str(outcome) for outcome in outcomes) == ["refused", "waiting"]
    record = await scripts.queue.record(J)
    assert record is not None
    assert record.attempts == 1


async def test_zombie_is_refused_by_log_and_queue(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """After another worker took a job over, its old owner can neither write, end nor requeue it."""
    zombie = await pulled(scripts, J)
    await zombie.start(J, 1)
    await zombie.append(J, 1, 1, 2)
    await zombie.die()
    await completion.reap("reaper", await orphan_of(scripts), completion._clock())
    heir = StubWorker(scripts)
    await heir.reconcile()
    [job] = (await heir.pull()).jobs
    assert (await heir.start(J, job.epoch)).last == 2
    assert (await zombie.append(J, 1, 3, 3)).status is LogStatus.FENCED
    assert (await zombie.end(J, 1, 2)).status is LogStatus.FENCED
    assert await scripts.lease.requeue(zombie.name, J, 1) is RequeueStatus.REFUSED
    assert (await heir.append(J, job.epoch, 3, 3)).status is LogStatus.OK
    assert await indices(scripts, J) == [1, 2, 3]


async def test_batch_answers_each_job_for_itself(scripts: Scripts) -> None:
    """In one batch a log of the wrong type fails alone; the jobs around it are appended."""
    await submit(scripts, a_job("j-a"), a_job("j-b"), a_job("j-c"))
    worker = StubWorker(scripts)
    await worker.reconcile()
    await worker.pull()
    for job_id in ("j-a", "j-c"):
        await worker.start(job_id, 1)
    await raw(scripts).set(scripts.keys.log("j-b"), "not a stream")
    batch = [tokens(job_id, 1, 1, 1) for job_id in ("j-a", "j-b", "j-c")]
    statuses = [reply.status for reply in await scripts.log.append(batch)]
    assert statuses == [LogStatus.OK, LogStatus.ERROR, LogStatus.OK]


async def test_batch_is_cut_into_slices_in_order(scripts: Scripts) -> None:
    """A batch over 64 items is answered item by item, in the order given."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    batch = [tokens(J, 1, index, index) for index in range(1, 151)]
    replies = await scripts.log.append(batch)
    assert [reply.last for reply in replies] == list(range(1, 151))


async def test_counted_append_is_refused_like_any_other(scripts: Scripts) -> None:
    """The short cut by the number of entries writes only where the long way would."""
    worker = await pulled(scripts, J)
    start = await worker.start(J, 1)
    assert (start.status, start.entries) == (LogStatus.OK, 1)

    async def append(epoch: int, start: int, to: int, entries: int) -> LogReply:
        item = replace(tokens(J, epoch, start, to), entries=entries)
        [reply] = await scripts.log.append([item])
        return reply

    first = await append(1, 1, 2, start.entries)
    assert (first.status, first.last, first.entries) == (LogStatus.OK, 2, 2)
    again = await append(1, 1, 2, start.entries)
    assert (again.status, again.last, again.entries) == (LogStatus.ALREADY, 2, 2)
    hole = await append(1, 5, 5, 1)
    assert (hole.status, hole.last, hole.entries) == (LogStatus.GAP, 2, 2)
    assert (await append(1, 3, 3, 2)).entries == 3
    await scripts.log.takeover([Takeover(J, 2, "heir", create=False)])
    # By luck the zombie's count is that of the log, the heir's marker included.
    zombie = await append(1, 4, 4, 4)
    assert (zombie.status, zombie.epoch) == (LogStatus.FENCED, 2)
    assert await indices(scripts, J) == [1, 2, 3]
