"""Use of a key's limits by lines of a batch: each counted once, however often it is asked.

A line that is counted is noted beside the counters in one call with them, so that a service that
goes on with the batch of a killed one counts none twice and gives nothing back twice.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.gateway.access.limits import MONTH_TTL_S, counters_of, limit_reached

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.gateway.access.caller import Caller

# Longer than any batch runs.
_NOTES_TTL_S = 31 * 86_400
# KEYS: the notes, then counters. ARGV: the line, its note, the TTL of the notes; limit, amount and
# TTL of each counter. Returns the places of the counters that have no room.
_ADMIT = """#!lua
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
  return {}
end
local full = {}
for i = 2, #KEYS do
  local count = tonumber(redis.call('GET', KEYS[i]) or 0)
  if count + ARGV[3 * i - 1] > tonumber(ARGV[3 * i - 2]) then
    full[#full + 1] = i - 1
  end
end
if #full > 0 then
  return full
end
for i = 2, #KEYS do
  redis.call('INCRBY', KEYS[i], ARGV[3 * i - 1])
  redis.call('EXPIRE', KEYS[i], ARGV[3 * i], 'NX')
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return full
"""
# KEYS: the notes, then counters of tokens. ARGV: the line, its note as it was read, what to add.
_REFUND = """#!lua flags=allow-oom
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], '')
for i = 2, #KEYS do
  redis.call('INCRBY', KEYS[i], ARGV[3])
  redis.call('EXPIRE', KEYS[i], ARGV[4], 'NX')
end
return 1
"""


class LineUse:
    """Counts the lines of one batch. Every method raises what a call on the server raises."""

    def __init__(self, redis: Redis, batch_id: str) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis
        self._notes = deployment_keys.batch_use(batch_id)

    async def admit(self, caller: Caller, line: int, num_tokens: int) -> None:
        """Count a line and the tokens that it may come to, unless it is counted already.

        Raises: ApiError 429 with the time at which the limit is a new one.
        """
        if caller.key_id is None or caller.limits.is_open:
            return
        counters = counters_of(caller, num_tokens, time.time())
        of_tokens = [counter.name for counter in counters if counter.is_of_tokens]
        note = json.dumps([num_tokens, of_tokens])
        full = await self._redis.eval(
            _ADMIT,
            1 + len(counters),
            self._notes,
            *(counter.name for counter in counters),
            *(line, note, _NOTES_TTL_S),
            *(part for each in counters for part in (each.limit, each.amount, each.ttl_s)),
        )
        if full:
            raise limit_reached([counters[place - 1] for place in full])

    async def refund_unused(self, caller: Caller, line: int, num_used: int) -> None:
        """Give back what a line has not used, once."""
        if caller.key_id is None or caller.limits.is_open:
            return
        note = await self._redis.hget(self._notes, line)
        if not note:
            return
        num_tokens, counters = json.loads(note)
        rest = num_used - num_tokens
        await self._redis.eval(
            _REFUND,
            1 + len(counters),
            self._notes,
            *counters,
            *(line, note, rest, MONTH_TTL_S),
        )
