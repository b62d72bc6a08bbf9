"""Gateways, workers and the server are killed under streams of chunks, and readers resume."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import pytest
from gateways.doors import Door, Frame, door, door_process, frames_of
from patience import PATIENCE_S
from rides.scale import IS_SHORT, LEASE, long_row
from servers.fixtures import server_binary
from servers.mortal_server import MortalServer
from workers.null_workers import WorkerProcess, until, worker_process

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable

NUM_STREAMS, NUM_KILLS = (4, 2) if IS_SHORT else (100, 50)
NUM_TOKENS = 60 if IS_SHORT else 2000
PATH = "/v1/chat/completions"
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": NUM_TOKENS,
    "n": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
}
BROKEN = (OSError, aiohttp.ClientError)


@dataclass
class Rider:
    """A reader who goes on at any gateway after the last frame that it has."""

    seed: int
    frames: list[Frame] = field(default_factory=list)
    is_done: bool = False
    num_breaks: int = 0

    @property
    def _was_last(self) -> bool:
        """Tell whether nothing but `[DONE]` was left to come."""
        return bool(self.frames) and self.frames[-1].json["choices"] == []

    @property
    def job_id(self) -> str:
        """Return the id of its job."""
        return str(self.frames[-1].id).partition(":")[0]

    async def ride(self, next_door: Callable[[], Door]) -> None:
        """Read until the end."""
        while not self.is_done:
            try:
                await self._read(next_door())
            except BROKEN:
                await asyncio.sleep(0.05)
            self.num_breaks += not self.is_done

    async def _read(self, running: Door) -> None:
        named = {"Last_Event_ID": str(self.frames[-1].id)} if self.frames else {}
        method, path = ("GET", f"/v1/jobs/{self.job_id}/stream") if self.frames else ("POST", PATH)
        body = None if self.frames else {**BODY, "seed": self.seed}
        if not self.frames:
            # A submit whose answer was lost is repeated, and is the same job.
            named["Idempotency_Key"] = f"rider-{self.seed}"
        async with running.open(method, path, body, **named) as response:
            if response.status != 200:
                await response.read()
                await asyncio.sleep(0.05)
                return
            last_has_id = False
            async for frame in frames_of(response):
                if frame.data == "[DONE]":
                    # Behind an error of the gateway's own, which has no place in the stream, the
                    # rest is still to come.
                    self.is_done = last_has_id or self._was_last
                    return
                if frame.data:
                    last_has_id = frame.id is not None
                    if last_has_id:
                        self.frames.append(frame)


class Deployment:
    """What is killed: two gateways, a worker, and the server below them."""

    def __init__(self, server: MortalServer, pool: str, part: str) -> None:
        self.server = server
        self.pool = pool
        self.part = part
        self.doors: list[Door] = []
        self._stack = AsyncExitStack()
        self._worker: WorkerProcess | None = None
        self._turn = 0

    async def __aenter__(self) -> Self:
        """Start all."""
        await self._start_worker()
        for _ in range(2):
            self.doors.append(await self._start_door())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def next_door(self) -> Door:
        """Return a gateway, each in its turn."""
        self._turn += 1
        return self.doors[self._turn % len(self.doors)]

    async def kill(self) -> None:
        """Kill the part and let another take its place."""
        if self.part == "server":
            self.server.kill()
            await self.server.start()
        elif self.part == "worker":
            assert self._worker is not None
            self._worker.process.kill()
            await self._start_worker()
        else:
            self._turn += 1
            number = self._turn % len(self.doors)
            process = self.doors[number].process
            assert process is not None
            process.kill()
            self.doors[number] = await self._start_door()

    async def _start_worker(self) -> None:
        made = worker_process(self.pool, self.server.url, null_tokens_per_s=40, **LEASE)
        self._worker = await self._stack.enter_async_context(made)

    async def _start_door(self) -> Door:
        made = door_process if self.part == "gateway" else door
        return await self._stack.enter_async_context(made(self.server.url, self.pool))


@asynccontextmanager
async def deployed(kind: str, pool: str, part: str) -> AsyncIterator[Deployment]:
    """Run a server that may die, a worker and two gateways."""
    server = MortalServer(server_binary(kind))
    try:
        await server.start()
        async with Deployment(server, pool, part) as running:
            yield running
    finally:
        server.close()


async def at_tokens(riders: list[Rider], count: int) -> None:
    """Wait until the riders have so many frames in all, or are there."""
    await until(
        lambda: (
            sum(len(rider.frames) for rider in riders) >= count
            or all(rider.is_done for rider in riders)
        )
    )


@pytest.mark.parametrize(
    "part",
    [
        pytest.param("gateway", marks=long_row),
        pytest.param("worker", marks=long_row),
        "server",
    ],
)
async def test_streams_outlive_every_part(
    server_kind: str, pool: str, part: str, rng: random.Random
) -> None:
    """Whatever dies, each reader gets every frame once, equal to those of the unbroken stream."""
    async with deployed(server_kind, pool, part) as running:
        riders = [Rider(seed) for seed in range(NUM_STREAMS)]
        rides = [asyncio.create_task(rider.ride(running.next_door)) for rider in riders]
        total = NUM_STREAMS * 2 * NUM_TOKENS
        marks = sorted(rng.sample(range(total // 10, total * 9 // 10), NUM_KILLS))
        for mark in marks:
            await at_tokens(riders, mark)
            await running.kill()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*rides)
        for rider in riders:
            unbroken = await running.next_door().get(f"/v1/jobs/{rider.job_id}/stream")
            expected = [(frame.id, frame.data) for frame in unbroken.data_frames[:-1]]
            assert [(frame.id, frame.data) for frame in rider.frames] == expected
            assert rider.frames[-1].json["usage"]["completion_tokens"] == 2 * NUM_TOKENS
