"""The API key of a batch: whether it is good still, and what its lines may use by it."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import SecretStr

from tokenbus.producer.gateway.access.api_keys import ApiKey, ApiKeys, digest_of
from tokenbus.producer.gateway.access.caller import NO_OWNER, Caller
from tokenbus.producer.gateway.access.key_ring import caller_of
from tokenbus.producer.gateway.access.line_use import LineUse

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.stored.batch_record import BatchRecord

# How long a record that was read is believed.
_BELIEVED_S = 0.5


class BatchKey:
    """Stands for who has asked for a batch, as the door does for who asks for a job.

    Methods raise what a call on the server raises.
    """

    def __init__(self, redis: Redis, record: BatchRecord) -> None:
        self._record = record
        self._keys = ApiKeys(redis)
        self._use = LineUse(redis, record.id)
        self._found: ApiKey | None = None
        self._read_at = float("-inf")

    async def is_good(self) -> bool:
        """Tell whether the key may ask for anything; without keys everybody may."""
        if self._record.key_id is None:
            return True
        found = await self._read()
        return found is not None and not found.revoked

    async def caller(self) -> Caller:
        """Return in whose name the lines run."""
        record = self._record
        found = await self._read()
        if found is not None:
            return caller_of(found)
        who = Caller(tenant=record.tenant, id_prefix=record.owner)
        if record.owner == NO_OWNER:
            return who
        # Of a given key nothing is stored: what is cached is the batch's own, whose id is secret.
        secret = SecretStr(digest_of(f"batch\n{record.id}"))
        return replace(who, cache_group=record.owner, cache_secret=secret)

    async def admit(self, line: int, num_tokens: int) -> None:
        """Count a line on the limits of the key, once. Raises: ApiError 429."""
        await self._use.admit(await self.caller(), line, num_tokens)

    async def refund_unused(self, line: int, num_used: int) -> None:
        """Give back what a line did not use, once."""
        await self._use.refund_unused(await self.caller(), line, num_used)

    async def _read(self) -> ApiKey | None:
        key_id, now = self._record.key_id, time.monotonic()
        if key_id is not None and now - self._read_at >= _BELIEVED_S:
            self._found = await self._keys.find(key_id)
            self._read_at = now
        return self._found
