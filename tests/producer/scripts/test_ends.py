"""Ends: cancel in every state, deadlines, delays, completion and what it leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from workers.stubs import StubWorker, a_job, first_step, num_ends, owned_end, pulled, raw, submit

from tokenbus.producer.scripts.completing import Retention
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.replies import JobState, RequeueStatus

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts

J = "j-1"


async def state_of(scripts: Scripts) -> JobState | None:
    """Return where the job's record stands."""
    record = await scripts.queue.record(J)
    return None if record is None else record.state


async def reason_of(scripts: Scripts) -> str:
    """Return why the job ended."""
    finish = (await scripts.log.events(J) or [])[-1].finish
    assert finish is not None
    return finish.reason


async def make_due(scripts: Scripts, kind: str) -> None:
    """Make a deadline (`d`) or delay (`n`) of the job due now."""
    await raw(scripts).zadd(scripts.keys.of("due"), {f"{kind}:{J}": 1})


async def test_cancel_of_a_waiting_job_ends_it_at_once(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A waiting job leaves its lane, gets its terminal event and no worker sees it."""
    await submit(scripts, a_job(J))
    assert await completion.cancel(J) == "ended"
    assert await reason_of(scripts) == "cancelled"
    assert set((await scripts.lease.load()).values()) == {0}
    assert await completion.cancel(J) == "done"
    assert await num_ends(scripts, J) == 1


async def test_cancel_of_a_held_job_tells_its_owner(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """The owner of a held job sees the flag in its next renewal, and is told at once."""
    worker = await pulled(scripts, J)
    listener = raw(scripts).pubsub()
    await listener.subscribe(scripts.keys.of("ctl", worker.name))
    await listener.get_message(timeout=PATIENCE_S)
    assert await completion.cancel(J) == "held"
    message = await listener.get_message(timeout=PATIENCE_S)
    assert message is not None
    assert message["data"] == f"cancel 1 {J}".encode()
    await listener.aclose()
    [held] = (await scripts.lease.renew(worker.name, 60_000, 1000, 16)).held
    assert (held.job_id, held.flag) == (J, "cancel")


@pytest.mark.parametrize(("reason", "answer"), [("cancelled", "ended"), ("stop", "done")])
async def test_cancel_says_whether_it_ended_the_job_that_it_flagged(
    scripts: Scripts,
    completion: JobCompletion,
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
    answer: str,
) -> None:
    """An owner that is faster than the canceller's next look leaves it the result to ask."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)

    async def ended_meanwhile(*_: object) -> None:
        reply = await worker.end(J, 1, 0, reason)
        await completion.complete(J, reply.finish)

    monkeypatch.setattr(scripts.log, "events", ended_meanwhile)
    assert await completion.cancel(J) == answer
    # Whoever comes later finds it ended, whatever the reason.
    assert await completion.cancel(J) == "done"


async def test_cancel_in_ending_answers_its_epoch_again(scripts: Scripts) -> None:
    """A client that died between cancel and end leaves a job that any retry can end."""
    await submit(scripts, a_job(J))
    first = await scripts.queue.cancel(J)
    second = await scripts.queue.cancel(J)
    assert first == second
    assert first.ending is not None
    assert first.ending.epoch == 1


async def test_cancel_of_an_unknown_job_says_so(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """Nothing is created for a job that nobody knows."""
    assert await completion.cancel("nobody") == "unknown"
    assert await raw(scripts).exists(scripts.keys.of("job", "nobody")) == 0


async def test_forsaken_ending_is_taken_by_a_tick(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """What lies in `ending` for 5 s is ended by whoever ticks next, and handed out once per 5 s."""
    await submit(scripts, a_job(J))
    await scripts.queue.cancel(J)
    assert (await scripts.queue.tick()).endings == ()
    await raw(scripts).zadd(scripts.keys.of("ending"), {J: 1})
    assert [ending.job_id for ending in (await scripts.queue.tick()).endings] == [J]
    assert (await scripts.queue.tick()).endings == ()
    await raw(scripts).zadd(scripts.keys.of("ending"), {J: 1})
    await completion.tick()
    assert await reason_of(scripts) == "cancelled"


async def test_deadline_of_a_waiting_job_expires_it(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A job whose deadline passes in the queue ends `expired` without being run."""
    await submit(scripts, a_job(J, deadline_ms=600_000))
    await completion.tick()
    assert await state_of(scripts) is JobState.WAITING
    await make_due(scripts, "d")
    await completion.tick()
    assert await reason_of(scripts) == "expired"
    assert await state_of(scripts) is JobState.DONE


async def test_deadline_of_a_held_job_flags_it(scripts: Scripts, completion: JobCompletion) -> None:
    """A running job is flagged at its deadline; given back it ends instead of waiting."""
    await submit(scripts, a_job(J, deadline_ms=600_000))
    worker = StubWorker(scripts)
    await worker.reconcile()
    [job] = (await worker.pull()).jobs
    assert job.remaining_ms is not None
    assert 0 < job.remaining_ms <= 600_000
    await make_due(scripts, "d")
    await completion.tick()
    [held] = await worker.reconcile()
    assert held.flag == "expire"
    assert await scripts.lease.requeue(worker.name, J, 1) is RequeueStatus.ENDING
    assert await completion.cancel(J) == "done"
    assert await reason_of(scripts) == "expired"


async def test_delayed_job_waits_for_its_time(scripts: Scripts, completion: JobCompletion) -> None:
    """A job with `not_before` is in no lane until it is due; then the bell rings."""
    await submit(scripts, a_job(J, not_before_ms=600_000))
    worker = StubWorker(scripts)
    await worker.reconcile()
    assert (await worker.pull()).jobs == ()
    assert await state_of(scripts) is JobState.DELAYED
    await make_due(scripts, "n")
    await completion.tick()
    assert await raw(scripts).llen(scripts.keys.of("bell")) == 1
    assert [job.job_id for job in (await worker.pull()).jobs] == [J]


async def test_cancel_of_a_delayed_job_ends_it(scripts: Scripts, completion: JobCompletion) -> None:
    """A job that was not yet due is cancelled like a waiting one and leaves no alarm behind."""
    await submit(scripts, a_job(J, not_before_ms=600_000, deadline_ms=900_000))
    assert await completion.cancel(J) == "ended"
    assert await raw(scripts).zcard(scripts.keys.of("due")) == 0


async def test_completion_charges_once(scripts: Scripts, completion: JobCompletion) -> None:
    """The charge is corrected to the actual usage by the first completion, and by no other."""
    worker = await pulled(scripts, J)
    await submit(scripts, a_job("j-2"))
    await worker.pull()
    await worker.run(J, 1, 3)
    finish = owned_end(J, 1, 3).finish
    charged = [await _virtual_time(scripts)]
    for _ in range(3):
        await completion.complete(J, finish)
        charged.append(await _virtual_time(scripts))
    assert [entry.job_id for entry in await worker.reconcile()] == ["j-2"]
    await first_step(scripts, J, finish, 10**6)
    charged.append(await _virtual_time(scripts))
    assert charged == [96, 83, 83, 83, 83]


async def _virtual_time(scripts: Scripts) -> float:
    """Return what the jobs of a tenant that has some running were charged together."""
    time: float = await raw(scripts).zscore(scripts.keys.of("running", "1"), "acme")
    return time


async def test_completion_of_a_requeued_job_takes_it_out_of_the_queue(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A job that was given back although its end had been written is never pulled again."""
    worker = await pulled(scripts, J)
    await worker.run(J, 1, 2)
    await scripts.lease.requeue(worker.name, J, 1)
    await completion.complete(J, owned_end(J, 1, 2).finish)
    assert (await worker.pull()).jobs == ()
    assert (await scripts.lease.load())["jobs"] == 0


@pytest.mark.parametrize("is_one_server", [True, False], ids=["in-one-turn", "in-steps"])
async def test_every_key_of_an_ended_job_expires(scripts: Scripts, is_one_server: bool) -> None:
    """After completion log, result, record and idempotency entry have TTLs, the record the last.

    On one server the result takes the log's place.
    """
    scripts.completion.is_one_server = is_one_server
    completion = JobCompletion(scripts, Retention(log_ms=10_000, result_ms=20_000))
    await submit(scripts, a_job(J, idempotency="key", deadline_ms=60_000))
    worker = StubWorker(scripts)
    await worker.reconcile()
    await worker.pull()
    await worker.run(J, 1, 2)
    await completion.complete(J, owned_end(J, 1, 2).finish)
    keys, redis = scripts.keys, raw(scripts)
    # In one transaction, which sees one moment of the server's clock.
    async with redis.pipeline(transaction=True) as together:
        for key in (keys.log(J), keys.result(J), keys.of("job", J), keys.of("idem", "key")):
            together.pttl(key)
        ttls = await together.execute()
    assert 10_000 < ttls[1] < ttls[2] <= ttls[3] <= 25_000
    assert ttls[0] == -2 if is_one_server else 0 < ttls[0] < ttls[1]
    stale = {keys.of(name) for name in ("floor", "load", "drain", "workers", "bell")} | {
        keys.of("worker", worker.name)
    }
    left = {
        key.decode()
        async for key in redis.scan_iter(f"{{tb:{keys.pool}*")
        if await redis.ttl(key) < 0
    }
    assert left <= stale


async def test_failed_job_is_a_dead_letter_once(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A job that its owner fails is kept in the dead-letter stream with its request."""
    worker = await pulled(scripts, J)
    await worker.start(J, 1)
    finish = (await worker.end(J, 1, 0, "failed")).finish
    for _ in range(2):
        await completion.complete(J, finish)
    [(_, letter)] = await raw(scripts).xrange(scripts.keys.of("dead"))
    assert letter[b"body"] == b'{"v":1,"prompt":"x"}'


async def test_submit_is_idempotent_by_job_id_and_key(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """The same request is accepted once, whatever the state of its job; another one conflicts."""
    job = a_job(J, idempotency="key", digest="one")
    same_key = a_job("j-2", idempotency="key", digest="one")
    [first, again, by_key] = await submit(scripts, job, job, same_key)
    assert [reply.created for reply in (first, again, by_key)] == [True, False, False]  # type: ignore[union-attr]  # none was refused
    assert by_key.place.job_id == J  # type: ignore[union-attr]  # it was not refused
    [other_id, other_key] = await submit(
        scripts, a_job(J, digest="two"), a_job("j-3", idempotency="key", digest="two")
    )
    assert [reply.status for reply in (other_id, other_key)] == ["conflict", "conflict"]  # type: ignore[union-attr]  # both were refused
    await completion.cancel(J)
    [ended] = await submit(scripts, same_key)
    assert ended.place.state is JobState.DONE  # type: ignore[union-attr]  # it was not refused
