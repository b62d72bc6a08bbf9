"""The server's disk is full for a while, under load: nothing that was accepted is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rides.ride import Ride
from rides.scale import IS_SHORT, PATIENT
from servers.fixtures import server_binary
from servers.full_disk import FullDisk
from servers.mortal_server import MortalServer
from workers.forkserver import forked_worker
from workers.stubs import until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ServerUnreachable
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from rides.ride import Cargo

NUM_TIMES = 1 if IS_SHORT else 5
NUM_TOKENS = 120 if IS_SHORT else 300


async def test_disk_that_was_full_for_a_while_has_lost_nothing(
    server_kind: str, tmp_path: Path, pool: str, cargo: Cargo, rng: random.Random, num_jobs: int
) -> None:
    """Jobs run on once there is room, new ones are refused by code meanwhile, all ends are kept."""
    disk = FullDisk(tmp_path, server_binary(server_kind))
    server = MortalServer(disk.binary)
    await server.start()
    hasty = ClientSettings(retry_for_s=0.2)
    try:
        async with (
            await AsyncClient.connect(server.url, pool, PATIENT) as client,
            await AsyncClient.connect(server.url, pool, hasty) as impatient,
        ):
            ride = Ride(client, cargo, rng, server.url)
            async with forked_worker(**ride.settings()), forked_worker(**ride.settings()):
                await ride.board(num_jobs, NUM_TOKENS)
                await ride.until_seen(5)
                for _ in range(NUM_TIMES):
                    disk.fill()
                    await until(lambda: _is_refused(impatient))
                    disk.free()
                    await ride.until_more(num_jobs)
                await ride.arrive()
                await ride.check_nothing_left()
            server.kill()
            await server.start()
            for address in ride.addresses:
                assert await client.result(address.job_id, tenant=address.tenant)
    finally:
        server.close()


async def _is_refused(client: AsyncClient) -> bool:
    """Tell whether the server takes no write; jobs that it still took run beside the others."""
    try:
        await client.submit("x", max_tokens=1)
    except ServerUnreachable as error:
        return error.code == "MISCONF"
    return False
