"""The cancel listener hears at once that a held job was cancelled or expired."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.jobs.settlement import Settlement

# A silent connection is looked at this often.
_POLL_S = 5.0


class CancelListener:
    """Listens on the worker's own channel: `<flag> <epoch> <job id>`."""

    def __init__(self, member: PoolMember, redis: Redis, settlement: Settlement) -> None:
        self._session = member.session
        self._channel = member.scripts.keys.of("ctl", member.worker)
        self._held_jobs = member.held_jobs
        self._redis = redis
        self._settlement = settlement
        self._log = get_logger()

    async def run(self) -> None:
        """Listen for ever, through every reconnect."""
        while True:
            await self._session.opened()
            try:
                await self._listen()
            except SERVER_ERRORS as error:
                self._session.lose(f"the notices stopped: {answer_of(error).told}")

    async def _listen(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as listener:
            await listener.subscribe(self._channel)
            while True:
                message = await listener.get_message(timeout=_POLL_S)
                if message is not None:
                    self._take(message["data"])

    def _take(self, text: bytes) -> None:
        parts = text.decode("utf-8", "replace").split(" ", 2)
        if len(parts) != 3:
            self._log.warning("notice.malformed", text=text[:100])
            return
        flag, epoch, job_id = parts
        job = self._held_jobs.get(job_id)
        # As text: a stranger who may publish here may write what is no number.
        if job is not None and str(job.epoch) == epoch:
            self._settlement.flag(job, flag)
