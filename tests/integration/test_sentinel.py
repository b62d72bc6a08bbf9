"""Sentinels: everyone asks them for the master, and follows when another one is promoted."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from redis.exceptions import RedisError
from rides.ride import NullCargo, Ride
from rides.scale import PATIENT
from servers.fixtures import pool, server_binary
from servers.server_groups import (
    MASTER,
    SENTINEL_CONFIG,
    ServerGroup,
    fails_over,
    rules,
    start_sentinels,
)
from workers.forkserver import forked_worker
from workers.stubs import until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ServerRefused, ServerUnreachable, ServerUnsuitable
from tokenbus.producer.server.connection import make_redis, open_server
from tokenbus.producer.server.sentinels import named_master

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

__all__ = ["pool"]


@pytest.fixture(params=["valkey", pytest.param("redis", marks=pytest.mark.slow)])
async def group(request: pytest.FixtureRequest) -> AsyncIterator[ServerGroup]:
    """Give a group of servers of each kind."""
    async with ServerGroup(server_binary(request.param)) as made:
        yield made


@pytest.mark.parametrize("dies", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_everyone_follows_the_sentinels_to_the_promoted_replica(
    group: ServerGroup, pool: str, dies: bool
) -> None:
    """The master dies mid-stream, or lives on deposed: all jobs end at its replica, unbroken.

    A deposed master goes on answering for seconds, and what it took then would be lost; it refuses
    from the moment at which it notices that its replica is gone.
    """
    master, replica, sentinel, url = await start_sentinels(group)
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
            await until(lambda: fails_over(group, sentinel))
            await until(lambda: rules(group, replica))
            if not dies:
                await until(lambda: _is_alone(group, master))
            await ride.board(2)
            await ride.arrive()
            await ride.check_nothing_left()


async def test_connection_that_was_in_use_at_the_failover_is_not_used_on(
    group: ServerGroup,
) -> None:
    """Once another master is named no call reaches the old one, which still answers."""
    master, replica, sentinel, url = await start_sentinels(group)
    redis: Any = make_redis(url)
    asked: asyncio.Future[Any] = asyncio.ensure_future(redis.blpop("nothing", 60))
    await until(lambda: _has_blocked(group, master))
    await until(lambda: fails_over(group, sentinel))

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


async def test_sentinels_that_refuse_are_told_at_once_and_may_change_their_password(
    group: ServerGroup, tmp_path: Path
) -> None:
    """Which sentinel it was, and what gives it user and password; a file of it is read anew."""
    master = await group.start()
    config = SENTINEL_CONFIG.format(name=MASTER, port=master)
    sentinel = await group.start(config=config, sentinel=True)
    with pytest.raises(ServerUnsuitable, match=r"is a sentinel; write redis\+sentinel://"):
        await open_server(f"redis://127.0.0.1:{sentinel}", retry_for_s=PATIENCE_S)
    given = ("ACL", "SETUSER", "default", "resetpass", ">first")
    await group.client(sentinel).execute_command(*given)
    base = f"redis+sentinel://127.0.0.1:{sentinel}/{MASTER}"
    with pytest.raises(ServerRefused, match=f"127.0.0.1:{sentinel}.*sentinel_password") as caught:
        await open_server(base, retry_for_s=PATIENCE_S)
    assert caught.value.code == "NOAUTH"
    with pytest.raises(ServerRefused) as caught:
        await open_server(f"{base}?sentinel_password=wrong", retry_for_s=PATIENCE_S)
    assert caught.value.code == "WRONGPASS"
    # One that is away may yet name the master.
    two = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel}/{MASTER}"
    with pytest.raises(ServerUnreachable, match=r"127.0.0.1:1: .*NOAUTH") as unreached:
        await open_server(two, retry_for_s=0.1)
    assert "Redis(" not in str(unreached.value)
    (tmp_path / "password").write_text("\ufeffwrong\n")
    url = f"{base}?sentinel_password_file={tmp_path / 'password'}"
    await group.client(sentinel).execute_command("ACL", "LOG", "RESET")
    opening = asyncio.create_task(open_server(url, retry_for_s=PATIENCE_S))
    await until(lambda: _has_refused(group, sentinel))
    (tmp_path / "password").write_text("\ufefffirst\n")
    server = await opening
    assert await server.redis.ping()
    await server.close()


async def _has_refused(group: ServerGroup, sentinel: int) -> bool:
    return bool(await group.client(sentinel).execute_command("ACL", "LOG"))


async def _has(group: ServerGroup, replica: int, written: int) -> bool:
    info = await group.client(replica).info("replication")
    return bool(info["slave_repl_offset"] >= written)


async def _is_alone(group: ServerGroup, master: int) -> bool:
    return bool((await group.client(master).info("replication"))["connected_slaves"] == 0)


async def _has_blocked(group: ServerGroup, master: int) -> bool:
    return bool((await group.client(master).info("clients"))["blocked_clients"])
