"""Dead letters are bounded in number and in bytes, and counted exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from workers.stubs import raw

from tokenbus.producer.contract.events import Failure, Finish

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts

REFUSAL = Finish("failed", error=Failure("invalid_request", "no", "job")).dump()
MIB = 1024 * 1024


async def refuse(scripts: Scripts, body: bytes) -> None:
    """Let a raw entry become a dead letter."""
    entry = (await raw(scripts).xadd(scripts.keys.of("inbox"), {"job": "x"})).decode()
    await scripts.queue.reject(entry, f"refused-{entry}", REFUSAL, body)


async def kept(scripts: Scripts) -> tuple[int, int]:
    """Count letters and the bytes of their fields as they are."""
    letters = await raw(scripts).xrange(scripts.keys.of("dead"))
    sizes = [sum(len(k) + len(v) for k, v in fields.items()) for _, fields in letters]
    return len(sizes), sum(sizes)


async def told(scripts: Scripts) -> tuple[int, int]:
    """Read how many letters and bytes the pool has counted."""
    count, size = await raw(scripts).hmget(scripts.keys.of("letters"), "count", "bytes")
    return int(count), int(size)


async def test_letters_are_bounded_in_bytes_the_oldest_first(scripts: Scripts) -> None:
    """However many come, they stay under the bound, and the newest are there."""
    await scripts.queue.bound_letters(MIB)
    for number in range(60):
        await refuse(scripts, b"%03d" % number + b"x" * (1000 * (number % 64)))
        assert await told(scripts) == await kept(scripts)
        assert (await kept(scripts))[1] <= MIB
    letters = await raw(scripts).xrange(scripts.keys.of("dead"))
    bodies = [int(fields[b"body"][:3]) for _, fields in letters]
    assert bodies == list(range(60 - len(bodies), 60))
    assert 10 < len(bodies) < 60


async def test_letters_of_a_release_that_did_not_count_are_counted(scripts: Scripts) -> None:
    """A stream that others have grown or cut is counted anew, and cut to the bound."""
    key = scripts.keys.of("dead")
    await scripts.queue.bound_letters(MIB)
    fields = {"job": "old", "tenant": "", "finish": REFUSAL, "body": "x" * 60_000, "at": "1"}
    for _ in range(40):
        await raw(scripts).xadd(key, fields)
    await refuse(scripts, b"new")
    assert await told(scripts) == await kept(scripts)
    assert MIB - 70_000 < (await kept(scripts))[1] <= MIB
    await raw(scripts).xtrim(key, maxlen=3, approximate=False)
    await refuse(scripts, b"newer")
    assert await told(scripts) == await kept(scripts)
    assert (await kept(scripts))[0] == 4


async def test_deleted_letters_are_counted_no_more(scripts: Scripts) -> None:
    """Who deletes some leaves a count that is right, also where some were gone before."""
    for number in range(5):
        await refuse(scripts, b"x" * number)
    ids = [entry.decode() for entry, _ in await raw(scripts).xrange(scripts.keys.of("dead"))]
    assert await scripts.queue.drop_letters([*ids[:2], "1-1"]) == 2
    assert await scripts.queue.drop_letters(ids[:3]) == 1
    assert await told(scripts) == await kept(scripts)
    assert (await kept(scripts))[0] == 2


async def test_letters_are_bounded_in_number(scripts: Scripts) -> None:
    """The ten thousand newest are kept where they are small."""
    pipeline = raw(scripts).pipeline(transaction=False)
    for _ in range(10_005):
        pipeline.xadd(scripts.keys.of("dead"), {"job": "old", "body": "x"})
    await pipeline.execute()
    await refuse(scripts, b"new")
    assert await told(scripts) == await kept(scripts)
    assert (await kept(scripts))[0] == 10_000
