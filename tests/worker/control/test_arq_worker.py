"""The arq client: a cancelled call ends its task, a server that is silent is not waited for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from redis.exceptions import TimeoutError as RedisTimeoutError
from servers.wire_proxy import WireProxy

from tokenbus.worker.control.arq_worker import connect_arq

if TYPE_CHECKING:
    from arq.connections import ArqRedis

# More turns of the event loop than a call takes until its command is written.
_TURNS = 20
_CALLS = 100


async def call_many_times(redis: ArqRedis) -> None:
    """Do what a poll loop does, for longer than a test that cancels it."""
    for _ in range(_CALLS):
        await redis.ping()


async def test_no_cancellation_is_lost_in_a_call(redis_url: str, pool: str) -> None:
    """Whatever point a call has come to, cancelling its task ends the task there."""
    redis = connect_arq(redis_url, pool)
    await redis.ping()
    went_on = []
    for turns in range(_TURNS):
        task = asyncio.create_task(call_many_times(redis))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            went_on.append(turns)
    await redis.aclose(close_connection_pool=True)
    assert went_on == []


@pytest.mark.parametrize(("name", "size"), [("reading", 1), ("writing", 64 << 20)])
async def test_silent_server_is_not_waited_for(
    redis_url: str, pool: str, name: str, size: int
) -> None:
    """A call gives up after its time limit, and the next one has a connection of its own."""
    async with WireProxy(Path(redis_url.removeprefix("unix://"))) as wire:
        redis = connect_arq(wire.url, pool, call_timeout_s=0.5)
        await until_answered(redis)
        wire.fall_silent()
        with pytest.raises(RedisTimeoutError, match=f"{name} [a-z]+ socket"):
            await redis.set(f"silent:{pool}", b"x" * size)
        wire.mend()
        await until_answered(redis)
        # What a close may take is bounded by the same half second.
        with suppress(RedisTimeoutError):
            await redis.aclose(close_connection_pool=True)


async def until_answered(redis: ArqRedis) -> None:
    """Call until a call was answered: the first ones may come too late for their time limit."""
    async with asyncio.timeout(PATIENCE_S):
        while not await answers(redis):
            pass


async def answers(redis: ArqRedis) -> bool:
    """Tell whether a call is answered, and by the answer to itself."""
    try:
        return bool(await redis.echo("here") == b"here")
    except RedisTimeoutError:
        return False
