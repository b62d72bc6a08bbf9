"""Sentinels: everyone asks them for the master, and follows when another one is promoted."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from redis.exceptions import RedisError, ResponseError
from rides.ride import NullCargo, Ride
from rides.scale import PATIENT
from servers.fixtures import pool, server_binary
from servers.server_groups import MASTER, ServerGroup
from workers.forkserver import forked_worker
from workers.stubs import until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ServerUnreachable
from tokenbus.producer.server.connection import make_redis, open_server
from tokenbus.producer.server.sentinels import named_master

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["pool"]

# A machine under load keeps a server from answering for a second; the tests say when it is time.
CONFIG = """\
sentinel monitor {name} 127.0.0.1 {port} 1
sentinel down-after-milliseconds {name} 60000
sentinel failover-timeout {name} 3000
"""
# A master that no replica follows any more takes nothing: another one may rule by now.
SAFE = ("--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0")


@pytest.fixture(params=["valkey", pytest.param("redis", marks=pytest.mark.slow)])
async def group(request: pytest.FixtureRequest) -> AsyncIterator[ServerGroup]:
    """Give a group of servers of each kind."""
    async with ServerGroup(server_binary(request.param)) as made:
        yield made


async def _start(group: ServerGroup) -> tuple[int, int, int, str]:
    """Start a master, its replica and a sentinel; return their ports and the URL."""
    master = await group.start(*SAFE)
    replica = await group.start("--replicaof", "127.0.0.1", str(master))
    await until(lambda: _follows(group, replica))
    await until(lambda: _is_followed(group, master))
    sentinel = await group.start(config=CONFIG.format(name=MASTER, port=master), sentinel=True)
    await until(lambda: _knows_a_replica(group, sentinel))
    return master, replica, sentinel, f"redis+sentinel://127.0.0.1:{sentinel}/{MASTER}"


@pytest.mark.parametrize("dies", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_everyone_follows_the_sentinels_to_the_promoted_replica(
    group: ServerGroup, pool: str, dies: bool
) -> None:
    """The master dies mid-stream, or lives on deposed: all jobs end at its replica, unbroken.

    A deposed master goes on answering for seconds, and what it took then would be lost; it refuses
    from the moment at which it notices that its replica is gone.
    """
    master, replica, sentinel, url = await _start(group)
    async with await AsyncClient.connect(url, pool=pool, settings=PATIENT) as client:
        ride = Ride(client, NullCargo(tokens_per_s=60), random.Random(9), url)
        async with forked_worker(**ride.settings()):
            await ride.board(8, 100)
            await ride.until_seen(5, 8)
            # What the replica was not sent yet would be lost; here the failover itself is tried.
            written = (await group.client(master).info("replication"))["master_repl_offset"]
            await until(lambda: _has(group, replica, written))
            if dies:
                await group.kill(master)
            await until(lambda: _fails_over(group, sentinel))
            await until(lambda: _rules(group, replica))
            if not dies:
                await until(lambda: _is_alone(group, master))
            await ride.board(2)
            await ride.arrive()
            await ride.check_nothing_left()


async def test_connection_that_was_in_use_at_the_failover_is_not_used_on(
    group: ServerGroup,
) -> None:
    """Once another master is named no call reaches the old one, which still answers."""
    master, replica, sentinel, url = await _start(group)
    redis: Any = make_redis(url)
    asked: asyncio.Future[Any] = asyncio.ensure_future(redis.blpop("nothing", 60))
    await until(lambda: _has_blocked(group, master))
    await until(lambda: _fails_over(group, sentinel))

    async def is_named() -> bool:
        try:
            address = await named_master(redis)
        except RedisError:
            return False
        return address is not None and address[1] == replica

    await until(is_named)
    for client in await group.client(master).client_list():
        await group.client(master).client_unblock(int(client["id"]))
    assert await asked is None
    infos = await asyncio.gather(redis.info("server"), redis.info("server"))
    await redis.aclose()
    assert [info["tcp_port"] for info in infos] == [replica, replica]


async def test_sentinel_without_such_a_master_is_told() -> None:
    """Sentinels that cannot be reached or know no such master are no server; the URL says which."""
    url = "redis+sentinel://:hush@127.0.0.1:1,127.0.0.1:2/nobody"
    with pytest.raises(ServerUnreachable, match="nobody") as caught:
        await open_server(url, retry_for_s=0.2)
    assert "hush" not in str(caught.value)


async def _follows(group: ServerGroup, replica: int) -> bool:
    info = await group.client(replica).info("replication")
    return bool(info["master_link_status"] == "up")


async def _knows_a_replica(group: ServerGroup, sentinel: int) -> bool:
    return bool(await group.client(sentinel).execute_command("SENTINEL", "REPLICAS", MASTER))


async def _has(group: ServerGroup, replica: int, written: int) -> bool:
    info = await group.client(replica).info("replication")
    return bool(info["slave_repl_offset"] >= written)


async def _rules(group: ServerGroup, replica: int) -> bool:
    try:
        return bool((await group.client(replica).info("replication"))["role"] == "master")
    except RedisError:
        # Whoever was connected to a replica that is promoted is cut off.
        return False


async def _is_alone(group: ServerGroup, master: int) -> bool:
    return bool((await group.client(master).info("replication"))["connected_slaves"] == 0)


async def _has_blocked(group: ServerGroup, master: int) -> bool:
    return bool((await group.client(master).info("clients"))["blocked_clients"])


async def _is_followed(group: ServerGroup, master: int) -> bool:
    return bool((await group.client(master).info("replication"))["min_slaves_good_slaves"])


async def _fails_over(group: ServerGroup, sentinel: int) -> bool:
    try:
        await group.client(sentinel).execute_command("SENTINEL", "FAILOVER", MASTER)
    except ResponseError as error:
        # A sentinel that has just begun to watch does not trust the replica yet.
        if str(error).startswith("NOGOODSLAVE"):
            return False
        raise
    return True
