"""redis-py: what is private in it, or differs from release to release, and is used all the same.

The base works with redis-py 5.3 and its newest major (`tests/producer/server/test_redis_py.py`
tries what is here, `.ci/run` the clients and a worker with the newest). Nothing else in the
packages touches a private name of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio.cluster import ClusterPipeline
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from redis.asyncio.connection import AbstractConnection

# Later releases repeat a call that failed, speak version 3 of the protocol and give a call 5 s.
# What a lost call did is settled by the rules of reconciling, and every call has its own limit.
_IS_BEFORE_6 = hasattr(ClusterPipeline, "_execute")


def connection_options() -> dict[str, Any]:
    """Return options under which a connection of any release does the same."""
    return {"protocol": 2, "retry": Retry(NoBackoff(), 0), "socket_timeout": None}


def cluster_options() -> dict[str, Any]:
    """Return options under which the client of a cluster repeats nothing."""
    if _IS_BEFORE_6:
        never = {"cluster_error_retry_attempts": 0, "connection_error_retry_attempts": 0}
        return {"protocol": 2, "socket_timeout": None} | never
    return connection_options()


def error_maker(connection: AbstractConnection) -> Callable[[str], Exception]:
    """Return what turns an error reply's text into redis-py's exception."""
    opened: Any = connection
    make: Callable[[str], Exception] = opened._parser.parse_error
    return make


def take_transport(
    connection: AbstractConnection, protocol: asyncio.BaseProtocol
) -> asyncio.Transport:
    """Let our own protocol hear the socket of an opened connection in place of redis-py's."""
    opened: Any = connection
    transport: asyncio.Transport = opened._writer.transport
    transport.set_protocol(protocol)
    return transport


class OnePass(ClusterPipeline):
    """Commands sent together to the nodes of a cluster, once.

    Before redis-py 6 its own sends none where it may not repeat any.
    """

    async def execute(
        self, raise_on_error: bool = True, allow_redirections: bool = True
    ) -> list[Any]:
        """Send the commands and return their replies, errors among them unless they raise."""
        how = {"raise_on_error": raise_on_error, "allow_redirections": allow_redirections}
        if not _IS_BEFORE_6:
            return await super().execute(**how)
        pipeline: Any = self
        commands, pipeline._command_stack = pipeline._command_stack, []
        client = pipeline._client
        await client.initialize()
        replies: list[Any] = await pipeline._execute(client, commands, **how) if commands else []
        return replies
