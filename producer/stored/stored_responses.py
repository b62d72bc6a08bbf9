"""Responses of owners: what was asked, with what input, and the result once there is one.

What an owner keeps is bounded in bytes, and in time by a TTL: the oldest make room for new ones.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.errors import JobDropped
from tokenbus.producer.stored import stored_keys
from tokenbus.producer.stored.errors import NotStored
from tokenbus.producer.stored.response_record import ResponseRecord

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.scripts import Scripts

# Sizes are counted by response, so that what has expired is subtracted when its time is over.
_LET_GO = """
local function let_go(id)
  local size = tonumber(redis.call('HGET', KEYS[3], id) or 0)
  redis.call('HDEL', KEYS[3], id)
  redis.call('HINCRBY', KEYS[3], 'total', -size)
  redis.call('ZREM', KEYS[2], id)
end
"""
_PUT = f"""#!lua
{_LET_GO}
local id, now, ttl, most, field, prefix = unpack(ARGV, 1, 6)
if field == 'result' and redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local before, size = tonumber(redis.call('HGET', KEYS[3], id) or 0), 0
for i = 7, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
for _, value in ipairs(redis.call('HVALS', KEYS[1])) do
  size = size + #value
end
redis.call('HSET', KEYS[3], id, size)
local total = redis.call('HINCRBY', KEYS[3], 'total', size - before)
if field == 'result' then
  redis.call('ZREM', KEYS[4], id)
else
  redis.call('ZADD', KEYS[2], now, id)
  redis.call('PEXPIRE', KEYS[1], ttl)
  redis.call('PEXPIRE', KEYS[2], ttl)
  redis.call('PEXPIRE', KEYS[3], ttl)
  redis.call('ZADD', KEYS[4], now, id)
  redis.call('PEXPIRE', KEYS[4], ttl)
end
for _, old in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ttl, 'LIMIT', 0, 100)) do
  let_go(old)
end
while tonumber(redis.call('HGET', KEYS[3], 'total')) > tonumber(most) do
  local old = redis.call('ZRANGE', KEYS[2], 0, 0)[1]
  if not old or old == id then
    break
  end
  redis.call('DEL', prefix .. old)
  redis.call('ZREM', KEYS[4], old)
  let_go(old)
end
return 1
"""
_REMOVE = f"""#!lua flags=allow-oom
{_LET_GO}
local was_there = redis.call('DEL', KEYS[1])
redis.call('ZREM', KEYS[4], ARGV[1])
let_go(ARGV[1])
return was_there
"""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response with its input items; `result` is None until it is stored."""

    record: ResponseRecord
    items: list[dict[str, Any]]
    result: JobResult | None


class StoredResponses:
    """The responses of all owners. Calls raise what redis raises."""

    def __init__(self, redis: Redis, *, ttl_s: float, owner_bytes: int) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis
        self._ttl_ms = int(ttl_s * 1000)
        self._owner_bytes = owner_bytes

    async def put(self, record: ResponseRecord, items: Sequence[dict[str, Any]]) -> None:
        """Keep a new response. Safe to repeat."""
        stored_items = json.dumps(items, separators=(",", ":"))
        await self._write(record, {"record": record.dump(), "input": stored_items})

    async def _write(self, record: ResponseRecord, fields: Mapping[str, str | bytes]) -> None:
        now_ms = time.time_ns() // 1_000_000
        await self._redis.eval(
            _PUT,
            *self._keys(record.id, record.owner, record.pool),
            *(record.id, now_ms, self._ttl_ms, self._owner_bytes, next(iter(fields))),
            stored_keys.response(""),
            *(part for pair in fields.items() for part in pair),
        )

    def _keys(self, response_id: str, owner: str, pool: str) -> tuple[int | str, ...]:
        return (
            4,
            stored_keys.response(response_id),
            stored_keys.responses(owner),
            stored_keys.response_sizes(owner),
            stored_keys.responses_open(pool),
        )

    async def get(self, owner: str, response_id: str) -> StoredResponse:
        """Return an owner's response. Raises: NotStored."""
        return (await self.get_all(owner, [response_id]))[0]

    async def get_all(self, owner: str, response_ids: Sequence[str]) -> list[StoredResponse]:
        """Return responses of an owner in the order of their ids. Raises: NotStored."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for response_id in response_ids:
                pipe.hgetall(stored_keys.response(response_id))
            stored = await pipe.execute()
        found = []
        for response_id, fields in zip(response_ids, stored, strict=True):
            record = ResponseRecord.parse(fields[b"record"]) if b"record" in fields else None
            if record is None or record.owner != owner:
                raise NotStored("response", response_id)
            found.append(
                StoredResponse(record, json.loads(fields[b"input"]), _read(fields.get(b"result")))
            )
        return found

    async def remove(self, record: ResponseRecord) -> None:
        """Forget a response."""
        keys = self._keys(record.id, record.owner, record.pool)
        await self._redis.eval(_REMOVE, *keys, record.id)

    async def store_result(self, record: ResponseRecord, scripts: Scripts) -> JobResult | None:
        """Keep the result of a response's job with it, and return it; None while there is none.

        Safe to repeat, by any process.
        """
        stored = await scripts.log.result(JobAddress(record.job_id, record.tenant).text)
        result = _read(stored)
        if result is not None and stored is not None:
            await self._write(record, {"result": stored})
        return result

    async def store_ended_results(self, scripts: Scripts, limit: int = 256) -> int:
        """Store results of jobs that have ended for responses that nobody has read; count them.

        What has no result by the time its job is forgotten is left alone from then on.
        """
        key, num_stored = stored_keys.responses_open(scripts.keys.pool), 0
        for raw in await self._redis.zrange(key, 0, limit - 1):
            response_id = raw.decode()
            stored = await self._redis.hget(stored_keys.response(response_id), "record")
            if stored is None:
                await self._redis.zrem(key, response_id)
                continue
            record = ResponseRecord.parse(stored)
            if await self.store_result(record, scripts) is not None:
                num_stored += 1
            elif await self._is_forgotten(record, scripts):
                await self._redis.zrem(key, response_id)
        return num_stored

    async def _is_forgotten(self, record: ResponseRecord, scripts: Scripts) -> bool:
        address = JobAddress(record.job_id, record.tenant).text
        is_young = time.time() - record.created_at < 60
        return not is_young and await scripts.queue.record(address) is None


def _read(stored: bytes | None) -> JobResult | None:
    try:
        return None if stored is None else JobResult.parse(stored)
    except JobDropped:
        return None
