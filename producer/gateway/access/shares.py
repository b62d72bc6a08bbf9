"""Fairness shares: a tenant's share is parted among those of its users that ask now.

The queue knows tenants. A user is one of its own there, with the tenant's weight by the number of
the tenant's users of the last minute: together they get what the tenant has, each the same of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract import deployment_keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.gateway.access.caller import Caller

ACTIVE_S = 60.0
# How long a number of users that was read is believed, and how many are remembered.
_BELIEVED_S = 1.0
_MAX_BELIEVED = 10_000


class Shares:
    """Weighs the shares of tenants, for all doors at once."""

    def __init__(self, redis: Redis) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis
        self._believed: dict[str, tuple[float, float]] = {}

    async def weight(self, caller: Caller) -> float:
        """Return the weight of a caller's jobs. Raises: what a call on the server raises."""
        if not caller.share:
            return caller.weight
        believed = self._believed.get(caller.job_tenant)
        if believed is not None and time.monotonic() - believed[0] < _BELIEVED_S:
            return believed[1]
        key, now_ms = deployment_keys.shares(caller.tenant), int(time.time() * 1000)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.zadd(key, {caller.share: now_ms})
            pipe.zremrangebyscore(key, "-inf", now_ms - int(ACTIVE_S * 1000))
            pipe.zcard(key)
            pipe.expire(key, int(2 * ACTIVE_S))
            replies = await pipe.execute()
        weight = caller.weight / max(1, int(replies[2]))
        if len(self._believed) >= _MAX_BELIEVED:
            self._believed.clear()
        self._believed[caller.job_tenant] = (time.monotonic(), weight)
        return weight
