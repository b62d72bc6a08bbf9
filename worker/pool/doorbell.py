"""The doorbell wakes the pull loop: the pool's list `bell`, and `wake` of this worker alone.

A pull may be sent along with the wait. The server makes it as soon as the bell rings, while the
worker sleeps: a lone job is on its way one round trip sooner.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.scripts.lease import LeaseScripts
from tokenbus.producer.scripts.runner import ScriptRunner
from tokenbus.producer.server.direct_connection import DirectConnection

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.scripts import Budget
    from tokenbus.producer.scripts.replies import Pulled
    from tokenbus.producer.scripts.source import Argument
    from tokenbus.worker.held.pool_member import PoolMember


class Doorbell:
    """Listens on a connection of its own, because it blocks."""

    def __init__(self, member: PoolMember, redis: Redis) -> None:
        keys = member.scripts.keys
        self._redis = redis
        self._keys = keys
        self._worker = member.worker
        self._connection = DirectConnection(redis)
        self._session = member.session
        # The last one is rung by releases of version 1.
        bells = (keys.of("bell"), keys.of("bell1"))
        self._doorbells = (keys.of("wake", member.worker), *bells)
        self._call_timeout_s = member.settings.call_timeout_s

    async def wait(self, wait_s: float) -> None:
        """Wait until work became pullable, for anybody or for this worker, or the time is over.

        A server that does not answer loses the session.
        """
        try:
            async with asyncio.timeout(wait_s + self._call_timeout_s):
                await self._connection.execute("BLPOP", *self._doorbells, wait_s)
        except SERVER_ERRORS as error:
            self._session.lose(f"the bell does not answer: {answer_of(error).told}")

    async def pull(self, wait_s: float, serial: int, budget: Budget) -> Pulled:
        """Wait as `wait` does, and pull in the same round trip.

        Raises: what `LeaseScripts.pull` raises.
        """
        waits: list[tuple[Argument, ...]] = [("BLPOP", *self._doorbells, wait_s)]

        async def execute(*args: Argument) -> object:
            # The text of a script that the server lacks goes behind no second wait.
            return await self._connection.execute(*args, behind=waits.pop() if waits else ())

        runner = ScriptRunner(self._redis, wait_s + self._call_timeout_s, execute)
        return await LeaseScripts(runner, self._keys).pull(self._worker, serial, budget)

    async def close(self) -> None:
        """Listen no more."""
        await self._connection.close()
