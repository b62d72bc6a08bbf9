"""Use of keys' limits by jobs: settled by their ends, whether a reader saw them or not."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.errors import JobDropped, ProducerError

if TYPE_CHECKING:
    from tokenbus.producer.gateway.access.limits import KeyUse, Reservation
    from tokenbus.producer.gateway.pools.served_models import ServedModels

_TICK_S = 1.0
# Jobs that one turn looks at.
_NUM_TOGETHER = 256
_log = logging.getLogger("tokenbus.gateway")


class JobUse:
    """Refunds what was counted for jobs and not used, as far as the server takes it."""

    def __init__(self, models: ServedModels, key_use: KeyUse) -> None:
        self._models = models
        self._key_use = key_use

    async def note(self, reservation: Reservation | None, *, is_new: bool) -> None:
        """Note a job that was accepted; one that is counted already is not counted again."""
        if reservation is None:
            return
        try:
            if is_new:
                await self._key_use.note(reservation)
            else:
                await self._key_use.refund(reservation)
        except SERVER_ERRORS as error:
            _log.warning("use.not_noted reason=%s", type(error).__name__)

    async def refund(self, reservation: Reservation | None) -> None:
        """Give back what was counted for a job that was refused."""
        await self.note(reservation, is_new=False)

    async def refund_unused(self, reservation: Reservation | None) -> None:
        """Give back what a job did not use, if it has ended; a later look sees the end else."""
        if reservation is None:
            return
        try:
            await self._refund_ended(reservation)
        except (ProducerError, *SERVER_ERRORS) as error:
            _log.debug("use.not_settled reason=%s", type(error).__name__)

    async def run(self) -> None:
        """Look after the jobs of all doors whose ends nobody told, until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                for reservation in await self._key_use.due(_NUM_TOGETHER):
                    await self.refund_unused(reservation)
            except SERVER_ERRORS as error:
                _log.debug("use.not_looked_at reason=%s", type(error).__name__)

    async def _refund_ended(self, reservation: Reservation) -> None:
        scripts = (await self._models.client(reservation.pool)).scripts
        stored = await scripts.log.result(reservation.address)
        if stored is not None:
            await self._key_use.refund_unused(reservation, _num_used(stored, reservation))
        elif await scripts.queue.record(reservation.address) is None:
            # Nobody knows any more what it came to.
            await self._key_use.refund_unused(reservation, reservation.num_tokens)


def _num_used(stored: bytes, reservation: Reservation) -> int:
    try:
        usage = JobResult.parse(stored).finish.usage
    except JobDropped:
        return reservation.num_tokens
    return usage.prompt_tokens + usage.completion_tokens
