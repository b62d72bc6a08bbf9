"""The script runner calls Lua scripts by name and loads what the server has forgotten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import RedisError, ResponseError

from tokenbus.producer.answers import answer_of
from tokenbus.producer.scripts import source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.scripts.source import Argument


class ScriptRunner:
    """Runs scripts by digest; a server that lost them gets their text again.

    Replies come as bytes. Every call is bounded by `timeout_s` (None: by its caller); what a
    timed-out call did on the server is unknown, so the rules of reconciling apply.
    """

    def __init__(
        self,
        redis: Redis,
        timeout_s: float | None = 10.0,
        execute: Callable[..., Awaitable[Any]] | None = None,
    ) -> None:
        """Run on the client's connections, single scripts through `execute` where it is given."""
        self._redis = redis
        self._database = database_of(redis)
        self._command: Callable[..., Awaitable[Any]] = redis.execute_command
        self._execute = execute or self._command
        self._timeout_s = timeout_s

    async def command(self, *args: Argument) -> Any:
        """Run one command. Raises: TimeoutError, redis.ConnectionError, redis.ResponseError."""
        async with asyncio.timeout(self._timeout_s):
            # redis-py gives the replies of some commands another form.
            return await self._command(*args)

    async def run(
        self, name: str, key: str | tuple[str, ...], /, **args: Argument | Sequence[Argument]
    ) -> Any:
        """Run one script in the slot of `key`, with the arguments that its header names.

        One that spans slots gets the tags of all.
        Raises: TimeoutError, redis.ConnectionError, redis.ResponseError (also OOM).
        """
        return await self.run_packed(name, key, source.read_part(name).signature.pack(args))

    async def run_packed(
        self, name: str, key: str | tuple[str, ...], args: Sequence[Argument]
    ) -> Any:
        """Run one script with the arguments as the server gets them. Raises: as `run`."""
        if self._timeout_s is None:
            return await self._run(name, key, args)
        async with asyncio.timeout(self._timeout_s):
            return await self._run(name, key, args)

    async def _run(self, name: str, key: str | tuple[str, ...], args: Sequence[Argument]) -> Any:
        keys = (key,) if isinstance(key, str) else key
        try:
            return await self._execute("EVALSHA", self._sha(name), len(keys), *keys, *args)
        except RedisError as error:
            if not _lacks_script(error):
                raise
            return await self._execute("EVAL", self._text(name), len(keys), *keys, *args)

    def _sha(self, name: str) -> str:
        return source.script_sha(name, self._database)

    def _text(self, name: str) -> str:
        return source.script_source(name, self._database)

    async def run_many(self, name: str, key: str, calls: Sequence[Sequence[Argument]]) -> list[Any]:
        """Run one script once per entry of `calls`, packed, in order and in one round trip.

        Other clients are served in between. A call that the server refused is answered by its
        exception. Raises: TimeoutError, redis.ConnectionError.
        """
        async with asyncio.timeout(self._timeout_s):
            replies = await self._pipelined(name, key, calls)
            unknown = [number for number, reply in enumerate(replies) if _lacks_script(reply)]
            if unknown:
                # The first brings the text along; what was refused for want of it did nothing.
                first, *rest = unknown
                try:
                    replies[first] = await self._execute(
                        "EVAL", self._text(name), 1, key, *calls[first]
                    )
                    later = await self._pipelined(name, key, [calls[number] for number in rest])
                except ResponseError as error:
                    # The text was refused, so the others find no script either.
                    replies[first] = error
                    later = [error] * len(rest)
                for number, reply in zip(rest, later, strict=True):
                    replies[number] = reply
        return replies

    async def _pipelined(
        self, name: str, key: str, calls: Sequence[Sequence[Argument]]
    ) -> list[Any]:
        pipeline: Any = self._redis.pipeline(transaction=False)
        for args in calls:
            pipeline.execute_command("EVALSHA", self._sha(name), 1, key, *args)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies


def database_of(redis: Redis) -> int:
    """Return the logical database that a client's connections select; a cluster has only 0."""
    pool = getattr(redis, "connection_pool", None)
    return int(getattr(pool, "connection_kwargs", {}).get("db") or 0)


def is_one_server(redis: Redis) -> bool:
    """Tell whether all keys of a pool lie on one server, so that one script may touch them all.

    A server in cluster mode is reached by a client of clusters alone (`server/connection.py`).
    """
    return not isinstance(redis, RedisCluster)


def _lacks_script(reply: Any) -> bool:
    return isinstance(reply, RedisError) and answer_of(reply).code == "NOSCRIPT"
