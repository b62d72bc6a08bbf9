"""Batches on the server: made and looked at by doors, run by the one service that has the lease.

What the owner of a lease writes is compared with the lease, so that one which was paused for longer
changes nothing of what its heir has written.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.producer.stored import stored_keys
from tokenbus.producer.stored.batch_record import BatchRecord, BatchState, BatchStatus
from tokenbus.producer.stored.derived_ids import is_batch_id
from tokenbus.producer.stored.errors import LeaseTaken, NotStored
from tokenbus.producer.stored.paging import Page, page_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

# How long a batch can be looked at once it has ended, as its files.
KEPT_S = 30 * 86_400

_CREATE = """#!lua
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'status', 'validating')
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('ZADD', KEYS[3], ARGV[3], ARGV[1])
-- Older ones are not kept any more, whatever became of them.
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[3] - ARGV[4])
return 1
"""
_CANCEL = """#!lua flags=allow-oom
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'validating' or status == 'in_progress' then
  redis.call('HSET', KEYS[1], 'status', 'cancelling', 'cancelling_at', ARGV[1])
  return 'cancelling'
end
return status
"""
_RENEW = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""
_RELEASE = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
"""
# A status is set if the batch has one of those that may come before it.
_UPDATE = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
local before = redis.call('HGET', KEYS[2], 'status')
for _, allowed in ipairs(cjson.decode(ARGV[2])) do
  if before == allowed then
    redis.call('HSET', KEYS[2], unpack(ARGV, 3))
    return 1
  end
end
return 2
"""
_COMMIT = """#!lua flags=allow-oom
local token, part, completed, failed = unpack(ARGV)
if redis.call('GET', KEYS[1]) ~= token then
  return 0
end
for i = 5, #ARGV do
  if redis.call('GETBIT', KEYS[3], ARGV[i]) == 1 then
    return redis.error_reply('DONE line ' .. ARGV[i] .. ' has its output')
  end
end
for i = 5, #ARGV do
  redis.call('SETBIT', KEYS[3], ARGV[i], 1)
end
redis.call('RPUSH', KEYS[4], part)
redis.call('HINCRBY', KEYS[2], 'completed', completed)
redis.call('HINCRBY', KEYS[2], 'failed', failed)
return 1
"""
_CLOSE = """#!lua flags=allow-oom
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('DEL', KEYS[4], KEYS[5])
redis.call('EXPIRE', KEYS[3], ARGV[3])
return 1
"""


class StoredBatches:
    """The batches of all owners. Calls raise what redis raises."""

    def __init__(self, redis: Redis) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis

    async def now_s(self) -> int:
        """Return the server's time, by which all of a batch goes."""
        seconds, _ = await self._redis.time()
        return int(seconds)

    async def create(self, record: BatchRecord) -> BatchState:
        """Make a batch, for whichever service of its pool takes it first."""
        await self._redis.eval(
            _CREATE,
            3,
            stored_keys.batch(record.id),
            stored_keys.batches(record.owner),
            stored_keys.batches_open(record.pool),
            *(record.id, record.dump(), record.created_at, 2 * KEPT_S),
        )
        return await self.state(record.id)

    async def state(self, batch_id: str) -> BatchState:
        """Return a batch of any owner. Raises: NotStored."""
        stored = await self._redis.hgetall(stored_keys.batch(batch_id))
        if b"record" not in stored:
            raise NotStored("batch", batch_id)
        return BatchState.of_hash(stored)

    async def get(self, owner: str, batch_id: str) -> BatchState:
        """Return an owner's batch. Raises: NotStored."""
        if not is_batch_id(batch_id):
            raise NotStored("batch", batch_id)
        found = await self.state(batch_id)
        if found.record.owner != owner:
            raise NotStored("batch", batch_id)
        return found

    async def page(self, owner: str, *, after: str | None, limit: int) -> Page[BatchState]:
        """Return a page of an owner's batches, newest first."""

        async def read(batch_ids: list[str]) -> list[BatchState]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for batch_id in batch_ids:
                    pipe.hgetall(stored_keys.batch(batch_id))
                stored = await pipe.execute()
            return [BatchState.of_hash(each) for each in stored if b"record" in each]

        return await page_of(self._redis, stored_keys.batches(owner), read, after, limit)

    async def cancel(self, owner: str, batch_id: str) -> BatchState:
        """Ask for the end of an owner's batch. What has ended stays. Raises: NotStored."""
        await self.get(owner, batch_id)
        key = stored_keys.batch(batch_id)
        await self._redis.eval(_CANCEL, 1, key, await self.now_s())
        return await self.state(batch_id)

    async def open_ids(self, pool: str, limit: int) -> list[str]:
        """Return batches of a pool that are not closed, oldest first."""
        found = await self._redis.zrange(stored_keys.batches_open(pool), 0, limit - 1)
        return [each.decode() for each in found]

    async def take(self, batch_id: str, token: str, lease_ms: int) -> bool:
        """Take a batch that nobody runs."""
        key = stored_keys.batch_lease(batch_id)
        return bool(await self._redis.set(key, token, nx=True, px=lease_ms))

    async def renew(self, batch_id: str, token: str, lease_ms: int) -> None:
        """Keep a batch. Raises: LeaseTaken."""
        key = stored_keys.batch_lease(batch_id)
        if not await self._redis.eval(_RENEW, 1, key, token, lease_ms):
            raise LeaseTaken(batch_id)

    async def release(self, batch_id: str, token: str) -> None:
        """Let another run a batch at once."""
        await self._redis.eval(_RELEASE, 1, stored_keys.batch_lease(batch_id), token)

    async def move(
        self,
        batch_id: str,
        token: str,
        status: BatchStatus,
        before: Sequence[BatchStatus],
        **fields: Any,
    ) -> bool:
        """Set status and fields; False if the batch has no status of `before` any more.

        Raises: LeaseTaken.
        """
        fields |= {"status": status.value, f"{status.value}_at": await self.now_s()}
        answer = await self._redis.eval(
            _UPDATE,
            2,
            stored_keys.batch_lease(batch_id),
            stored_keys.batch(batch_id),
            *(token, json.dumps([each.value for each in before])),
            *(part for pair in fields.items() for part in pair),
        )
        if not answer:
            raise LeaseTaken(batch_id)
        return bool(answer == 1)

    async def done(self, batch_id: str) -> bytes:
        """Return a bit for each line, from 0, the first one the highest of its byte."""
        return bytes(await self._redis.get(stored_keys.batch_done(batch_id)) or b"")

    async def commit(
        self, batch_id: str, token: str, part: str, lines: Sequence[int], num_failed: int
    ) -> None:
        """Note that a part of the output is written, which has these lines.

        Raises: LeaseTaken; redis.ResponseError where one of them was written before.
        """
        answer = await self._redis.eval(
            _COMMIT,
            4,
            stored_keys.batch_lease(batch_id),
            stored_keys.batch(batch_id),
            stored_keys.batch_done(batch_id),
            stored_keys.batch_parts(batch_id),
            *(token, part, len(lines) - num_failed, num_failed, *lines),
        )
        if not answer:
            raise LeaseTaken(batch_id)

    async def parts(self, batch_id: str) -> list[str]:
        """Return the names of the parts of the output, in order."""
        found = await self._redis.lrange(stored_keys.batch_parts(batch_id), 0, -1)
        return [each.decode() for each in found]

    async def close(self, state: BatchState, token: str) -> None:
        """Let go of a batch that has ended and was told of. Raises: LeaseTaken."""
        batch_id = state.id
        answer = await self._redis.eval(
            _CLOSE,
            5,
            stored_keys.batch_lease(batch_id),
            stored_keys.batches_open(state.record.pool),
            stored_keys.batch(batch_id),
            stored_keys.batch_done(batch_id),
            stored_keys.batch_parts(batch_id),
            *(token, batch_id, KEPT_S),
        )
        if not answer:
            raise LeaseTaken(batch_id)
