"""Fail-overs, again and again: as managed services do them, where the old master lives on and its
address leads away, and by sentinels.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
from rides.ride import NullCargo, Ride
from rides.scale import IS_SHORT, PATIENT
from servers.fixtures import server_binary
from servers.mortal_server import MortalServer
from servers.ports import free_port
from servers.server_groups import (
    ServerGroup,
    fails_over,
    follows,
    rules,
    start_sentinels,
)
from servers.wire_proxy import WireProxy
from workers.forkserver import forked_worker
from workers.null_workers import command
from workers.stubs import until

from tokenbus.producer.client.async_client import AsyncClient

if TYPE_CHECKING:
    import random

NUM_STREAMS, NUM_FAILOVERS = (8, 1) if IS_SHORT else (100, 10)
NUM_TOKENS = 160 if IS_SHORT else 2000


@pytest.mark.parametrize("way", [pytest.param("replicaof", marks=pytest.mark.slow), "failover"])
async def test_deposed_master_that_lives_on_is_left_by_everyone(
    server_kind: str, pool: str, rng: random.Random, way: str
) -> None:
    """A master becomes the replica of its replica, again and again, and closes no connection.

    `FAILOVER` hands over without a loss; by `REPLICAOF` what the replica lacks is taken back.
    """
    async with AsyncExitStack() as stack:
        ports = [free_port(), free_port()]
        servers = []
        for port in ports:
            options = ["--port", str(port), "--repl-diskless-sync-delay", "0"]
            server = MortalServer(server_binary(server_kind), options)
            stack.callback(server.close)
            await server.start()
            servers.append(server)
        wire = await stack.enter_async_context(WireProxy(servers[0].socket_path))
        client = await AsyncClient.connect(wire.url, pool=pool, settings=PATIENT)
        await stack.enter_async_context(client)
        admins = [
            await stack.enter_async_context(await AsyncClient.connect(server.url, pool=pool))
            for server in servers
        ]
        ride = Ride(client, NullCargo(tokens_per_s=100), rng, wire.url, is_rolled_back=True)
        for _ in range(2):
            await stack.enter_async_context(forked_worker(**ride.settings()))
        await command(admins[1].scripts, "REPLICAOF", "127.0.0.1", ports[0])
        await until(lambda: _follows(admins[1]))
        await ride.board(NUM_STREAMS, NUM_TOKENS)
        await ride.until_seen(5)
        master = 0
        for _ in range(NUM_FAILOVERS):
            replica = 1 - master
            if way == "failover":
                await command(admins[master].scripts, "FAILOVER")
                await until(partial(_rules, admins[replica]))
            else:
                await command(admins[replica].scripts, "REPLICAOF", "NO", "ONE")
                await command(admins[master].scripts, "REPLICAOF", "127.0.0.1", ports[replica])
            wire.upstream = servers[replica].socket_path
            await until(partial(_follows, admins[master]))
            master = replica
            await ride.until_more(2 * NUM_STREAMS)
        await ride.arrive()
        await ride.check_nothing_left()


async def test_sentinels_promote_one_after_the_other(
    server_kind: str, pool: str, rng: random.Random
) -> None:
    """Everyone asks them anew each time; what the new master lacks of the last is taken back."""
    async with AsyncExitStack() as stack:
        group = await stack.enter_async_context(ServerGroup(server_binary(server_kind)))
        master, replica, sentinel, url = await start_sentinels(group)
        client = await AsyncClient.connect(url, pool=pool, settings=PATIENT)
        await stack.enter_async_context(client)
        ride = Ride(client, NullCargo(tokens_per_s=100), rng, url, is_rolled_back=True)
        for _ in range(2):
            await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.board(NUM_STREAMS, NUM_TOKENS)
        await ride.until_seen(5)
        for _ in range(NUM_FAILOVERS):
            await until(lambda: fails_over(group, sentinel))
            await until(partial(rules, group, replica))
            # As the sentinel does itself, some seconds later.
            await group.client(master).execute_command("REPLICAOF", "127.0.0.1", replica)
            await until(partial(follows, group, master))
            master, replica = replica, master
            await ride.until_more(2 * NUM_STREAMS)
        await ride.arrive()
        await ride.check_nothing_left()


async def _follows(replica: AsyncClient) -> bool:
    info = await command(replica.scripts, "INFO", "replication")
    return bool(info["role"] == "slave" and info["master_link_status"] == "up")


async def _rules(server: AsyncClient) -> bool:
    return bool((await command(server.scripts, "INFO", "replication"))["role"] == "master")
