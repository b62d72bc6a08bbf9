"""The direct connection: calls in order over one socket, which never mixes answers up."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tokenbus.producer.server.connection import make_redis
from tokenbus.producer.server.direct_connection import DirectConnection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.server.embedded import EmbeddedServer

ECHO = ("EVAL", "return ARGV[1]", 0)
DEPOSED = ("EVAL", "return redis.error_reply('READONLY a replica')", 0)


@asynccontextmanager
async def direct_to(server: EmbeddedServer) -> AsyncIterator[tuple[DirectConnection, Any]]:
    """Give a direct connection, and the client that it belongs to."""
    redis: Any = make_redis(server.url, client_name="direct")
    direct = DirectConnection(redis)
    async with asyncio.timeout(PATIENCE_S):
        yield direct, redis
    await direct.close()
    await redis.aclose()


async def num_direct(redis: Any) -> int:
    """Count the connections of that name but the one that asks."""
    names = [each["name"] for each in await redis.client_list()]
    return names.count("direct") - 1


async def until_blocked(redis: Any) -> None:
    """Wait until somebody waits for the bell."""
    while all(each["cmd"] != "blpop" for each in await redis.client_list()):
        pass


async def test_calls_at_once_share_one_socket(private_server: EmbeddedServer) -> None:
    """Each call gets its own answer, errors among them, and one connection serves all."""
    async with direct_to(private_server) as (direct, redis):
        calls = [direct.execute(*ECHO, number) for number in range(50)]
        wrong = direct.execute("EVAL", "return redis.error_reply('ERR no')", 0)
        *answers, error = await asyncio.gather(*calls, wrong, return_exceptions=True)
        assert answers == [b"%d" % number for number in range(50)]
        assert isinstance(error, ResponseError)
        assert await num_direct(redis) == 1


async def test_call_that_was_given_up_answers_no_other(private_server: EmbeddedServer) -> None:
    """Those under way beside it get their own answers; later ones have another connection."""
    async with direct_to(private_server) as (direct, redis):
        await direct.execute(*ECHO, "first")
        blocked = asyncio.create_task(direct.execute("BLPOP", "bell", 0))
        behind = asyncio.create_task(direct.execute(*ECHO, "behind"))
        await asyncio.sleep(0)
        blocked.cancel()
        await asyncio.wait([blocked])
        assert await direct.execute(*ECHO, "later") == b"later"
        assert await num_direct(redis) == 2
        await redis.lpush("bell", "1")
        assert await behind == b"behind"
        while await num_direct(redis) > 1:
            pass


async def test_wait_that_was_given_up_takes_nothing(private_server: EmbeddedServer) -> None:
    """A server that nobody listens to any more keeps what it would have handed over."""
    async with direct_to(private_server) as (direct, redis):
        waiting = asyncio.create_task(direct.execute("BLPOP", "kept", 0))
        await until_blocked(redis)
        waiting.cancel()
        await asyncio.wait([waiting])
        while await num_direct(redis):
            pass
        await redis.lpush("kept", "1")
        assert await redis.llen("kept") == 1


async def test_call_behind_a_wait_is_made_by_the_server_alone(
    private_server: EmbeddedServer,
) -> None:
    """It runs when the wait is over, before anything is heard here; later calls get their own."""
    pop = ("EVAL", "return redis.call('LPOP', KEYS[1])", 1, "left")
    async with direct_to(private_server) as (direct, redis):
        waiting = asyncio.create_task(direct.execute(*pop, behind=("BLPOP", "bell", 0)))
        await until_blocked(redis)
        await redis.rpush("left", "job")
        await redis.rpush("bell", "1")
        while await redis.llen("left"):
            pass
        assert await waiting == b"job"
        assert await direct.execute(*ECHO, "later") == b"later"
        assert await num_direct(redis) == 1


async def test_wait_that_is_refused_fails_the_call_behind_it(
    private_server: EmbeddedServer,
) -> None:
    """Whoever waits is told, and no later call gets the answer that nobody took."""
    async with direct_to(private_server) as (direct, redis):
        await redis.set("text", "no list")
        with pytest.raises(ResponseError):
            await direct.execute(*ECHO, "behind", behind=("BLPOP", "text", 0))
        assert await direct.execute(*ECHO, "later") == b"later"


async def test_wait_with_a_call_behind_it_that_was_given_up_takes_nothing(
    private_server: EmbeddedServer,
) -> None:
    """A worker that drains may give up its pull at any time."""
    async with direct_to(private_server) as (direct, redis):
        pop = ("EVAL", "return redis.call('LPOP', KEYS[1])", 1, "untaken")
        waiting = asyncio.create_task(direct.execute(*pop, behind=("BLPOP", "unheard", 0)))
        await until_blocked(redis)
        waiting.cancel()
        await asyncio.wait([waiting])
        while await num_direct(redis):
            pass
        await redis.rpush("untaken", "job")
        await redis.rpush("unheard", "1")
        assert (await redis.llen("untaken"), await redis.llen("unheard")) == (1, 1)


async def test_lost_connection_ends_its_calls_and_the_next_connects(
    private_server: EmbeddedServer,
) -> None:
    """A call that was under way is not made again."""
    async with direct_to(private_server) as (direct, redis):
        waiting = asyncio.create_task(direct.execute("BLPOP", "bell", 0))
        await until_blocked(redis)
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        with pytest.raises(RedisConnectionError):
            await waiting
        assert await direct.execute(*ECHO, "again") == b"again"


async def test_answer_of_a_deposed_master_is_the_last_of_its_connection(
    private_server: EmbeddedServer,
) -> None:
    """The next call looks up where the master is by now."""
    async with direct_to(private_server) as (direct, redis):
        before = await direct.execute("CLIENT", "ID")
        with pytest.raises(ResponseError):
            await direct.execute(*DEPOSED)
        assert await direct.execute("CLIENT", "ID") != before
        assert await num_direct(redis) == 1
