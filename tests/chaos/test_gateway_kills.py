"""Gateways, workers, the server and the control service are killed under open streams.

`CHAOS_STREAMS` and `CHAOS_KILLS` say how many streams and kills of each part there are,
`CHAOS_TOKENS` how long a stream is and `CHAOS_PACE` how many tokens of it come in a second.
A long row of workers runs `CHAOS_WORKERS` of them: streams go on at another while one starts.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from gateways.deployment import PARTS, Deployment, deployed
from gateways.riders import BROKEN, ResponseRider, Rider
from patience import PATIENCE_S
from rides.scale import IS_SHORT, long_row, number_of, short_row
from workers.null_workers import until

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

NUM_STREAMS = number_of("STREAMS", 4, 100)
NUM_KILLS = number_of("KILLS", 1, 50)
NUM_TOKENS = number_of("TOKENS", 30, 2000)
NUM_WORKERS = number_of("WORKERS", 1, 2)
# Responses that nobody reads: the control service keeps their results.
NUM_UNREAD = max(2, NUM_STREAMS // 10)
# So slow that all kills, with the starts of what takes the place, are in mid-stream.
PACE_TOKENS_PER_S = number_of("PACE", 4, 10)


def made_riders() -> list[Rider]:
    """Return readers of chats and of responses in the background, one beside the other."""
    kinds = (Rider, ResponseRider)
    return [kinds[seed % 2](seed, NUM_TOKENS) for seed in range(NUM_STREAMS)]


async def at_frames(riders: Sequence[Rider], count: int) -> None:
    """Wait until the riders have so many frames in all, or are there."""
    await until(
        lambda: (
            sum(len(rider.frames) for rider in riders) >= count
            or all(rider.is_done for rider in riders)
        )
    )


async def asked_unread(running: Deployment) -> list[str]:
    """Ask for responses in the background; return where they are."""
    asked: dict[str, Any] = {"input": "hi", "max_output_tokens": NUM_TOKENS, "background": True}
    told = [await running.next_door().post("/v1/responses", asked) for _ in range(NUM_UNREAD)]
    return [f"/v1/responses/{each.json['id']}" for each in told]


async def check_unread(running: Deployment, paths: Sequence[str]) -> None:
    """Each was answered to its end, though nobody has read it."""

    async def ended(path: str) -> Any:
        while True:
            try:
                told = await running.next_door().get(path)
            except BROKEN:
                continue
            if told.status == 200 and told.json["status"] not in ("queued", "in_progress"):
                return told.json
            await asyncio.sleep(0.1)

    async with asyncio.timeout(PATIENCE_S):
        for path in paths:
            told = await ended(path)
            assert (told["status"], told["usage"]["output_tokens"]) == ("incomplete", NUM_TOKENS)


@pytest.mark.parametrize(
    "parts",
    [
        *(pytest.param([part], id=part, marks=long_row) for part in PARTS),
        pytest.param(PARTS, id="each", marks=short_row),
    ],
)
async def test_streams_outlive_every_part(
    server_kind: str, pool: str, parts: Sequence[str], rng: random.Random
) -> None:
    """Whatever dies, each reader gets every frame once, equal to those of the unbroken stream."""
    pace = {"null_tokens_per_s": PACE_TOKENS_PER_S}
    num_workers = NUM_WORKERS if "worker" in parts else 1
    async with deployed(server_kind, pool, parts, num_workers, **pace) as running:
        unread = await asked_unread(running)
        riders = made_riders()
        rides = [asyncio.create_task(rider.ride(running.next_door)) for rider in riders]
        total = sum(rider.num_frames for rider in riders)
        kills = [part for part in parts for _ in range(NUM_KILLS)]
        rng.shuffle(kills)
        marks = sorted(rng.sample(range(total // 10, total * 9 // 10), len(kills)))
        num_amid = 0
        for part, mark in zip(kills, marks, strict=True):
            await at_frames(riders, mark)
            num_amid += not all(rider.is_done for rider in riders)
            await running.kill(part)
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*rides)
        for rider in riders:
            await rider.check(running.next_door())
        await check_unread(running, unread)
        print(f"{num_amid} of {len(kills)} kills of {', '.join(parts)} in mid-stream:", end=" ")
        print(f"{sum(rider.num_breaks for rider in riders)} streams were resumed")
        assert num_amid == len(kills) or IS_SHORT
