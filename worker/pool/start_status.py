"""The start status: what a worker that loads its model is at, where boards and `status` look."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, NoReturn

from redis.exceptions import RedisError

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.release import release
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys
    from tokenbus.worker.life import WorkerLife

# What is told is so old at most; a start is a matter of seconds where the model is small.
INTERVAL_S = 0.25
_CALL_TIMEOUT_S = 1.0
# What the last start counts in the mean of all: those of one pool differ by chance.
_LAST_SHARE = 0.3
# A worker that dies at its start leaves its name for so long; without a status it counts for none.
_NAMES_TTL_MS = 600_000


class StartStatus:
    """Writes `status:<worker>` and the worker's name in `starting`, until the first lease.

    A server that is away keeps nobody from starting: what cannot be told is not.
    """

    def __init__(
        self, redis: Redis, keys: Keys, *, worker: str, model: str, life: WorkerLife, ttl_s: float
    ) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis
        self._keys = keys
        self._worker = worker
        self._model = model
        self._life = life
        self._ttl_ms = int(ttl_s * 1000)
        self._log = get_logger()

    async def run(self) -> NoReturn:
        """Tell all the time, until cancelled."""
        while True:
            try:
                await self._write()
            except (*SERVER_ERRORS, RedisError) as error:
                self._log.debug("start.not_told", reason=answer_of(error).told)
            await asyncio.sleep(INTERVAL_S)

    async def end(self, *, is_ready: bool) -> None:
        """Take the name out again; a worker that has a lease tells how long its start took."""
        took_s = self._life.uptime_s
        try:
            async with asyncio.timeout(_CALL_TIMEOUT_S):
                await self._redis.srem(self._keys.of("starting"), self._worker)
                if is_ready:
                    drain = self._keys.of("drain")
                    mean_s = float(await self._redis.hget(drain, "start_s") or took_s)
                    mean_s += _LAST_SHARE * (took_s - mean_s)
                    await self._redis.hset(drain, "start_s", round(mean_s, 2))
        except (*SERVER_ERRORS, RedisError) as error:
            self._log.debug("start.not_told", reason=answer_of(error).told)

    async def _write(self) -> None:
        told = {"v": 1, "worker": self._worker, "model": self._model, "ready": False}
        told |= {"version": release(), "phase": "starting", "phase_told": self._life.told}
        told |= {"percent": self._life.percent, "uptime_s": round(self._life.uptime_s, 1)}
        names = self._keys.of("starting")
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._keys.of("status", self._worker), json.dumps(told), px=self._ttl_ms)
            pipe.sadd(names, self._worker)
            pipe.pexpire(names, _NAMES_TTL_MS)
            await pipe.execute()
