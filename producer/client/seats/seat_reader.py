"""The seats of a pool, read: of a few workers what they run, and of the jobs that ended last how.

Plain reads, bounded however many jobs wait and workers live; made only while jobs wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError

from tokenbus.producer.client.seats.seats import EndedSeat, HeldSeat, Seats, SeatTimes
from tokenbus.producer.scripts.timeline import PULLED, EndedJob, parse_stamps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys

# Ended jobs that are looked at.
_NUM_ENDED = 128
# Held jobs that are looked at, and of how many workers.
_NUM_HELD, _NUM_WORKERS = 128, 8
# A job that waited less found a seat free: it may have run beside few others, and faster for that.
_WAITED_MS = 50


async def read_seats(
    redis: Redis, keys: Keys, held_jobs: Mapping[str, int], at_ms: int
) -> Seats | None:
    """Read the seats of workers that are ready, by name how many jobs they hold, as of `at_ms`.

    Returns: None where too little has been seen, or the server's user may not read what ended.
    Raises: what redis raises.
    """
    # Untyped: redis-py states some of its types wrongly.
    untyped: Any = redis
    workers = list(held_jobs)
    looked = workers[:: -(-len(workers) // _NUM_WORKERS) or 1]
    try:
        rows: list[bytes] = await untyped.lrange(keys.of("recent"), -_NUM_ENDED, -1)
    except NoPermissionError:
        return None
    async with untyped.pipeline(transaction=False) as pipe:
        pipe.hmget(keys.of("drain"), ["since", "full"])
        for name in workers:
            pipe.hget(keys.of("worker", name), "left")
        for name in looked:
            pipe.hkeys(keys.of("held", name))
        (since, full), *replies = await pipe.execute()
    times = SeatTimes.of([each for each in map(_ended, rows) if each is not None])
    jobs = [job for found in replies[len(workers) :] for job in found]
    held = await _held(untyped, keys, jobs[:: -(-len(jobs) // _NUM_HELD) or 1], at_ms)
    num_each = int(full or 0)
    if times is None or not num_each:
        return None
    num_free = 0
    for num_held, left in zip(held_jobs.values(), replies, strict=False):
        has_left = _has_left(left, since)
        num_free += max(0, (num_each if has_left is None else has_left) - num_held)
    if workers and not held and not num_free:
        return None
    return Seats(times, held, sum(held_jobs.values()), num_free, num_each)


def _ended(row: bytes) -> EndedSeat | None:
    """Return what an ended job says, None where that is nothing."""
    job = EndedJob.parse(row)
    if job is None or job.num_owners != 1 or not 0 < job.output_tokens <= job.bound_tokens:
        return None
    pulled_ms = job.first(PULLED)
    if pulled_ms is None or (job.queue_ms or 0) < _WAITED_MS or job.ended_ms <= pulled_ms:
        return None
    return EndedSeat((job.ended_ms - pulled_ms) / 1000, job.output_tokens, job.bound_tokens)


async def _held(redis: Any, keys: Keys, jobs: Sequence[bytes], at_ms: int) -> tuple[HeldSeat, ...]:
    """Read held jobs; those that end meanwhile are left out."""
    async with redis.pipeline(transaction=False) as pipe:
        for job in jobs:
            pipe.hmget(keys.of("job", job.decode()), ["stamps", "output", "n", "logged"])
        records = await pipe.execute() if jobs else []
    found = []
    for stamps, output, choices, logged in records:
        pulled = [s.at_ms for s in parse_stamps((stamps or b"").decode()) if s.kind == PULLED]
        if pulled and output:
            bound = int(output) * int(choices or 1) - int(logged or 0)
            found.append(HeldSeat(max(0, at_ms - pulled[-1]) / 1000, max(0, bound)))
    return tuple(found)


def _has_left(left: bytes | None, since: bytes | None) -> int | None:
    """Return how many jobs a worker held when it left others behind, None if it has not.

    A note of before the backlog began, `since` then, says nothing of now.
    """
    if not left or since is None:
        return None
    held, noted_ms, _ = left.split()
    return int(held) if int(noted_ms) >= int(since) else None
