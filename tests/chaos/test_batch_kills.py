"""A batch while everything that takes, runs and tells it is killed.

`CHAOS_LINES` says how many lines it has, `CHAOS_BATCH_KILLS` how often each part is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from gateways.doors import Door, Told, door_process
from gateways.uploads import upload
from rides.scale import IS_SHORT, LEASE, number_of
from servers.fixtures import server_binary
from servers.mortal_server import MortalServer
from workers.batches import completion_line, names_in, num_jobs_run
from workers.control_processes import control_process
from workers.null_workers import expected_text, worker_process

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract.address import DEFAULT_TENANT

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

NUM_LINES = number_of("LINES", 400, 50_000)
NUM_KILLS = number_of("BATCH_KILLS", 1, 5)
# Few lines are run slowly, or they would be done before the last kill.
IS_SMALL = NUM_LINES < 1000
PACE: dict[str, Any] = {"null_total_tokens_per_s": 60} if IS_SMALL else {}
# A batch of the full size takes minutes.
LONG_S = 240 if IS_SHORT else 1800
ENDED = ("completed", "failed", "expired", "cancelled")
BROKEN = (OSError, aiohttp.ClientError)


class _Kept:
    """A process that is started again whenever it ends."""

    def __init__(self, make: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._make = make
        self.running: Any = None

    async def run(self) -> None:
        """Keep it running."""
        while True:
            async with self._make() as started:
                self.running = started
                await started.process.wait()
                self.running = None

    def kill(self) -> bool:
        """Kill it, unless it is about to start."""
        process = self.running and self.running.process
        if process and process.returncode is None:
            process.kill()
            return True
        return False


@contextlib.asynccontextmanager
async def _all_kept(*kept: _Kept) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each.run()) for each in kept]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Customer:
    """Makes a batch and waits for it, at whatever gateway is there."""

    def __init__(self, doors: list[_Kept]) -> None:
        self._doors = doors
        self._turn = 0

    async def create(self, lines: list[dict[str, Any]]) -> Any:
        """Upload the lines and make a batch of them."""
        rows = "\n".join(map(json.dumps, lines)).encode()
        status, file = await upload(await self._next_door(), rows)
        assert status == 200, file
        asked = {"input_file_id": file["id"], "endpoint": "/v1/completions"}
        told = await self._ask("POST", "/v1/batches", asked | {"completion_window": "24h"})
        return told.json

    async def at(self, batch_id: str, wanted: int) -> Any:
        """Wait until so many lines have their output, or the batch has ended."""
        while True:
            told = (await self._ask("GET", f"/v1/batches/{batch_id}")).json
            counts = told["request_counts"]
            if counts["completed"] + counts["failed"] >= wanted or told["status"] in ENDED:
                return told
            await asyncio.sleep(0.05)

    async def ended(self, batch_id: str) -> Any:
        """Wait for the end."""
        return await self.at(batch_id, NUM_LINES + 1)

    async def rows(self, file_id: str) -> list[dict[str, Any]]:
        """Read an output file."""
        told = await self._ask("GET", f"/v1/files/{file_id}/content")
        return [json.loads(row) for row in told.text.splitlines()]

    async def _ask(self, method: str, path: str, body: Any = None) -> Told:
        """Ask one gateway after the other, until one answers."""
        while True:
            try:
                told = await (await self._next_door()).ask(method, path, body)
            except BROKEN:
                await asyncio.sleep(0.05)
                continue
            if told.status == 200:
                return told
            assert told.status == 503, told.text
            await asyncio.sleep(0.05)

    async def _next_door(self) -> Door:
        while True:
            self._turn += 1
            found: Door | None = self._doors[self._turn % len(self._doors)].running
            if found is not None:
                return found
            await asyncio.sleep(0.05)


async def _killed(part: str, kept: list[_Kept], server: MortalServer, rng: random.Random) -> None:
    """Kill one of a part."""
    if part == "server":
        server.kill()
        await server.start()
        return
    while not rng.choice(kept).kill():  # noqa: ASYNC110 - one that starts is waited for
        await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_parts_of_a_pool_are_killed_amid_a_batch(
    pool: str, rng: random.Random, tmp_path: Path
) -> None:
    """Whoever dies: as many rows as lines, each with its own answer, no line ran twice."""
    server = MortalServer(server_binary("valkey"))
    await server.start()
    url, folder = server.url, str(tmp_path / "files")
    parts = {
        "control": lambda: control_process(pool, url, files_url=folder, log_level="error"),
        "worker": lambda: worker_process(pool, url, **LEASE, **PACE),
        "gateway": lambda: door_process(url, pool, files_url=folder),
    }
    kept = {part: [_Kept(make) for _ in range(2)] for part, make in parts.items()}
    lines = [completion_line(number, model=pool) for number in range(NUM_LINES)]
    kills = [part for part in (*parts, "server") for _ in range(NUM_KILLS)]
    rng.shuffle(kills)
    num_amid = 0
    try:
        async with (
            asyncio.timeout(LONG_S),
            await AsyncClient.connect(url, pool) as client,
            _all_kept(*(each for pair in kept.values() for each in pair)),
        ):
            customer = _Customer(kept["gateway"])
            batch_id = (await customer.create(lines))["id"]
            for number, part in enumerate(kills, 1):
                told = await customer.at(batch_id, number * NUM_LINES // (len(kills) + 2))
                num_amid += told["status"] == "in_progress"
                await _killed(part, kept.get(part, []), server, rng)
            told = await customer.ended(batch_id)
            rows = await customer.rows(told["output_file_id"])
            num_run = await num_jobs_run(client, DEFAULT_TENANT)
    finally:
        server.close()
    print(f"{NUM_LINES} lines, {num_amid} of {len(kills)} kills amid them:", end=" ")
    print(f"{len(rows)} rows, {num_run} jobs")
    assert num_amid == len(kills) or IS_SMALL
    assert told["request_counts"] == {"total": NUM_LINES, "completed": NUM_LINES, "failed": 0}
    assert names_in(rows) == {line["custom_id"]: 1 for line in lines}
    for row in rows:
        number = int(row["custom_id"].partition("-")[2])
        assert row["response"]["body"]["choices"][0]["text"] == expected_text(number, 3)
    assert num_run == NUM_LINES
