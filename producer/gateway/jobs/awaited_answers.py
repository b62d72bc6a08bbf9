"""Awaited answers: which job a chat waits for, at whichever door its reader asks again.

A chat has one answer at a time. It waits for a job until a reader was told how that ended, or until
it was stopped; so an answer that came while its reader was away is there to be read.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.gateway.access.caller import tag_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.gateway.access.caller import Caller

MAX_CHAT_ID = 512
_TAG_DIGITS = 32
# A job may wait for long before it begins; its result is kept for less.
_TTL_MS = 2 * 86_400 * 1000


class AwaitedAnswers:
    """Notes the jobs of one owner's chats; each call raises what one on the server raises."""

    def __init__(self, redis: Redis, caller: Caller) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis
        self._owner = caller.id_prefix

    async def begin(self, chat_id: str, job_id: str) -> Sequence[str]:
        """Let a chat wait for a new job; return those that it waited for before."""
        key, now_ms = self._key(chat_id), int(time.time() * 1000)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.zrange(key, 0, -1)
            pipe.zadd(key, {job_id: now_ms})
            pipe.pexpire(key, _TTL_MS)
            before, *_ = await pipe.execute()
        return [name for each in before if (name := each.decode()) != job_id]

    async def current(self, chat_id: str) -> str | None:
        """Return the job that a chat waits for; None where it waits for none."""
        found = await self._redis.zrange(self._key(chat_id), -1, -1)
        return found[0].decode() if found else None

    async def end(self, chat_id: str, *job_ids: str) -> None:
        """Let a chat wait for these jobs no more; a later one is not touched."""
        if job_ids:
            await self._redis.zrem(self._key(chat_id), *job_ids)

    def _key(self, chat_id: str) -> str:
        return deployment_keys.chat(self._owner, tag_of(chat_id, _TAG_DIGITS))
