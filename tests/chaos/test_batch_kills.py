"""Batches while everything that runs them is killed."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from rides.scale import IS_SHORT, LEASE
from servers.fixtures import server_binary
from servers.mortal_server import MortalServer
from workers.batches import BatchDesk, completion_line, names_in, num_jobs_run
from workers.control_processes import control_process
from workers.null_workers import worker_process
from workers.stubs import until

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ServerError

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

NUM_LINES, NUM_KILLS = (400, 1) if IS_SHORT else (50_000, 5)
# Few lines are run slowly, or they would be done before the first kill.
PACE: dict[str, Any] = {"null_total_tokens_per_s": 100} if IS_SHORT else {}
# A batch of the full size takes minutes.
LONG_S = 120 if IS_SHORT else 1800


class _Kept:
    """A process that is started again whenever it ends."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._make = make
        self._running: Any = None

    async def run(self) -> None:
        """Keep it running."""
        while True:
            async with self._make() as self._running:
                await self._running.process.wait()

    def kill(self) -> None:
        """Kill it, unless it is about to start."""
        process = self._running and self._running.process
        if process and process.returncode is None:
            process.kill()


@contextlib.asynccontextmanager
async def _all_kept(*kept: _Kept) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in kept]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _num_done(desk: BatchDesk, batch_id: str, wanted: int) -> None:
    """Wait until so many lines have their output, whoever is away meanwhile."""

    async def is_done() -> bool:
        try:
            state = await desk.batches.state(batch_id)
        except (ServerError, *SERVER_ERRORS):
            return False
        return state.completed + state.failed >= wanted

    await until(is_done)


@pytest.mark.slow
async def test_parts_of_a_pool_are_killed_amid_a_batch(
    pool: str, rng: random.Random, tmp_path: Path
) -> None:
    """Workers, services and the server die in turn: as many rows as lines, no line ran twice."""
    server = MortalServer(server_binary("valkey"))
    await server.start()
    url, folder = server.url, str(tmp_path / "files")
    services = [
        _Kept(lambda: control_process(pool, url, files_url=folder, log_level="error"))
        for _ in range(2)
    ]
    workers = [_Kept(lambda: worker_process(pool, url, **LEASE, **PACE)) for _ in range(2)]
    lines = [completion_line(number) for number in range(NUM_LINES)]
    try:
        async with (
            asyncio.timeout(LONG_S),
            await AsyncClient.connect(url, pool) as client,
            _all_kept(*services, *workers),
        ):
            desk = BatchDesk(client, folder)
            batch_id = await desk.create(lines)
            for kill in range(3 * NUM_KILLS):
                await _num_done(desk, batch_id, (kill + 1) * NUM_LINES // (3 * NUM_KILLS + 2))
                if kill % 3 == 2:
                    server.kill()
                    await server.start()
                else:
                    rng.choice(services if kill % 3 else workers).kill()
            await _num_done(desk, batch_id, NUM_LINES)
            state = await desk.ended(batch_id)
            rows = await desk.rows(state.output_file_id)
            num_run = await num_jobs_run(client)
    finally:
        server.close()
    assert (state.total, state.completed, state.failed) == (NUM_LINES, NUM_LINES, 0)
    assert names_in(rows) == {line["custom_id"]: 1 for line in lines}
    assert num_run == NUM_LINES
