"""Entries that strangers wrote: a failed event, a dead letter, and nobody else disturbed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from workers.stubs import WIDE, StubWorker, a_job, raw, submit

from tokenbus.producer.contract.events import Failure, Finish
from tokenbus.producer.scripts.replies import JobState, Refused, Submitted

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion

GOOD = {
    "v": "1",
    "job": "ghost",
    "tenant": "acme",
    "prompt": "32",
    "output": "16",
    "n": "1",
    "logged": "0",
    "prefix": "",
}
HUGE = "x" * 5_000_000


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (GOOD, "job"),
        (GOOD | {"prompt": "-1"}, "prompt"),
        (GOOD | {"prompt": "many"}, "prompt"),
        (GOOD | {"prompt": "nan"}, "prompt"),
        (GOOD | {"prompt": "inf"}, "prompt"),
        (GOOD | {"output": "0.5"}, "output"),
        (GOOD | {"output": HUGE}, "output"),
        (GOOD | {"n": "0"}, "n"),
        (GOOD | {"logged": "-3"}, "logged"),
        (GOOD | {"v": "3"}, "v"),
        (GOOD | {"tenant": "someone-else"}, "tenant"),
        ({"job": "ghost"}, "v"),
    ],
    ids=lambda value: value if isinstance(value, str) else "entry",
)
async def test_garbage_in_a_lane_gets_its_failed_event(
    scripts: Scripts, completion: JobCompletion, fields: dict[str, str], field: str
) -> None:
    """An entry of an unknown job fails by field in the pull that meets it; others go on."""
    await submit(scripts, a_job("good-1"))
    await raw(scripts).xadd(scripts.keys.lane(1, "acme"), dict(fields))
    await submit(scripts, a_job("good-2"))
    worker = StubWorker(scripts)
    await worker.reconcile()
    reply = await worker.pull()
    assert [job.job_id for job in reply.jobs] == ["good-1", "good-2"]
    [ending] = reply.endings
    assert ending.job_id == "ghost"
    await completion.end_unowned(ending, completion._clock())
    finish = (await scripts.log.events("ghost") or [])[-1].finish
    assert finish is not None
    assert finish.error is not None
    assert (finish.reason, finish.error.field) == ("failed", field)
    [(_, letter)] = await raw(scripts).xrange(scripts.keys.of("dead"))
    assert len(letter[b"body"]) <= 65_536
    assert await raw(scripts).exists(scripts.keys.lane(1, "acme")) == 0
    assert await raw(scripts).ttl(scripts.keys.of("job", "ghost")) > 0


@pytest.mark.parametrize(
    "fields",
    [{"colour": "red"}, {"job": ""}, {"job": "{x}:\x00"}, {"job": "y" * 1000}, {"": ""}],
    ids=["no-job", "empty-job", "bad-job", "long-job", "empty-field"],
)
async def test_garbage_that_names_no_job_is_a_dead_letter(
    scripts: Scripts, fields: dict[str, str]
) -> None:
    """Where no job and so no channel is known, the dead letter is all."""
    await submit(scripts, a_job("good"))
    await raw(scripts).xadd(scripts.keys.lane(1, "acme"), dict(fields))
    worker = StubWorker(scripts)
    await worker.reconcile()
    reply = await worker.pull()
    assert ([job.job_id for job in reply.jobs], reply.endings) == (["good"], ())
    [(_, letter)] = await raw(scripts).xrange(scripts.keys.of("dead"))
    assert letter[b"job"].startswith(b"raw-")


async def test_forged_entry_of_a_live_job_does_not_disturb_it(scripts: Scripts) -> None:
    """A second entry for a job that waits or runs is buried; the job runs once, unharmed."""
    await submit(scripts, a_job("real"))
    await raw(scripts).xadd(scripts.keys.lane(1, "acme"), GOOD | {"job": "real"})
    await raw(scripts).xadd(scripts.keys.lane(1, "acme"), {"job": "real", "v": "9"})
    worker = StubWorker(scripts)
    await worker.reconcile()
    reply = await worker.pull()
    assert ([job.job_id for job in reply.jobs], reply.endings) == (["real"], ())
    record = await scripts.queue.record("real")
    assert record is not None
    assert record.state is JobState.HELD
    assert (await scripts.lease.load())["jobs"] == 0


async def test_garbage_in_front_is_buried_too(scripts: Scripts) -> None:
    """The front lists are checked like lanes."""
    await raw(scripts).xadd(scripts.keys.of("front", "0"), {"job": "ghost", "v": "1"})
    worker = StubWorker(scripts)
    await worker.reconcile()
    assert [ending.job_id for ending in (await worker.pull()).endings] == ["ghost"]
    assert await raw(scripts).exists(scripts.keys.of("front", "0")) == 0


REFUSAL = Finish("failed", error=Failure("invalid_request", "no", "max_tokens")).dump()


async def test_raw_entry_moves_into_its_lane_once(scripts: Scripts) -> None:
    """Of two workers that read the same raw entry one accepts it, the other is told `gone`."""
    entry = await raw(scripts).xadd(scripts.keys.of("inbox"), {"job": "{}"})
    [read] = await scripts.queue.drain_inbox("w1")
    assert (read.entry_id, read.body) == (entry.decode(), b"{}")
    job = a_job(f"raw-{read.entry_id}")
    first = await scripts.queue.submit(job, WIDE, entry_id=read.entry_id)
    second = await scripts.queue.submit(job, WIDE, entry_id=read.entry_id)
    assert isinstance(first, Submitted)
    assert isinstance(second, Refused)
    assert second.status == "gone"
    assert await raw(scripts).xlen(scripts.keys.of("inbox")) == 0


async def test_one_worker_drains_the_inbox_at_a_time(scripts: Scripts) -> None:
    """While one worker drains the inbox, others get nothing; when it ends they do."""
    await raw(scripts).xadd(scripts.keys.of("inbox"), {"job": "{}"})
    assert len(await scripts.queue.drain_inbox("w1", lease_ms=3_600_000)) == 1
    assert await scripts.queue.drain_inbox("w2") == []
    assert len(await scripts.queue.drain_inbox("w1")) == 1
    await raw(scripts).delete(scripts.keys.of("intake"))
    assert len(await scripts.queue.drain_inbox("w2")) == 1


async def test_refused_raw_entry_gets_its_failed_event(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A raw entry that fails validation ends once, under a name of its own, with a dead letter."""
    entry = (await raw(scripts).xadd(scripts.keys.of("inbox"), {"job": "x"})).decode()
    rejected = await scripts.queue.reject(
        entry, "refused-1", REFUSAL, b"x" * 100_000, named="mine@acme", tenant="acme"
    )
    assert rejected is not None
    assert (rejected.ending.job_id, rejected.is_name_free) == ("refused-1", True)
    assert await scripts.queue.reject(entry, "refused-2", REFUSAL, b"x") is None
    await completion.end_unowned(rejected.ending, completion._clock())
    finish = (await scripts.log.events("refused-1") or [])[-1].finish
    assert finish is not None
    assert finish.error is not None
    assert finish.error.field == "max_tokens"
    [(_, letter)] = await raw(scripts).xrange(scripts.keys.of("dead"))
    assert len(letter[b"body"]) == 65_536
    assert (letter[b"job"], letter[b"named"], letter[b"tenant"]) == (
        b"refused-1",
        b"mine@acme",
        b"acme",
    )
    assert await scripts.queue.record("mine@acme") is None


async def test_refused_raw_entry_cannot_end_another_job(scripts: Scripts) -> None:
    """Garbage that names a live job leaves it alone, and says that the name is not free."""
    await submit(scripts, a_job("real"))
    entry = (await raw(scripts).xadd(scripts.keys.of("inbox"), {"job": "x"})).decode()
    rejected = await scripts.queue.reject(entry, "refused-1", REFUSAL, b"x", named="real")
    assert rejected is not None
    assert (rejected.ending.job_id, rejected.is_name_free) == ("refused-1", False)
    record = await scripts.queue.record("real")
    assert record is not None
    assert record.state is JobState.WAITING


async def test_oversized_raw_entry_never_reaches_a_worker(scripts: Scripts) -> None:
    """A body over the limit is refused inside the server, in the read that meets it."""
    await raw(scripts).xadd(scripts.keys.of("inbox"), {"job": HUGE})
    await raw(scripts).xadd(scripts.keys.of("inbox"), {"job": "{}"})
    big, small = await scripts.queue.drain_inbox("w1", max_bytes=1_000_000)
    assert big.ending is not None
    assert (big.body, '"job"' in big.ending.finish) == (b"", True)
    assert (small.body, small.ending) == (b"{}", None)
    assert await raw(scripts).xlen(scripts.keys.of("inbox")) == 1
