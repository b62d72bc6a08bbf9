"""Readers that come and go: at any cursor, on old and new connections, to the same exact text."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rides.ride import NullCargo, Ride
from rides.scale import IS_SHORT, PATIENT
from workers.forkserver import forked_worker

from tokenbus.producer.client.async_client import AsyncClient

if TYPE_CHECKING:
    import random

    from tokenbus.producer.contract.events import Event

NUM_CYCLES = 250 if IS_SHORT else 5000
NUM_READERS = 8 if IS_SHORT else 40
# At 100 tokens a second a third of the cycles fall into the time in which tokens come.
NUM_TOKENS = 120 if IS_SHORT else 500
TOKENS_PER_S = 100
# Tokens that a reader stays for, and how often it comes back over a new connection.
LONGEST_STAY = 25
NEW_CONNECTION_EVERY = 20


@dataclass(slots=True)
class Restless:
    """A reader that leaves after a few tokens and comes back at a cursor of its choice."""

    client: AsyncClient
    job_id: str
    rng: random.Random
    cursor: int = 0
    pieces: dict[int, tuple[int, str]] = field(default_factory=dict)

    async def stay(self, client: AsyncClient) -> None:
        """Subscribe, read some tokens, and leave."""
        goal = self.cursor + self.rng.randrange(1, LONGEST_STAY)
        async with aclosing(client.stream(self.job_id, self.cursor)) as stream:
            async for event in stream:
                if event.finish is not None:
                    break
                self._see(event)
                if self.cursor >= goal:
                    break
        if self.rng.random() < 0.5:
            self.cursor = self.rng.randrange(len(self.pieces) + 1)

    async def cycle(self, num_cycles: int) -> None:
        """Come and go that many times; now and then with a connection of its own."""
        for number in range(num_cycles):
            if number % NEW_CONNECTION_EVERY:
                await self.stay(self.client)
                continue
            url, pool = self.client.effective_url, self.client.scripts.keys.pool
            async with await AsyncClient.connect(url, pool, PATIENT) as client:
                await self.stay(client)

    async def read_on(self) -> str:
        """Read from the last token seen to the end; return the text of all tokens, in order."""
        self.cursor = len(self.pieces)
        async for event in self.client.stream(self.job_id, self.cursor):
            if event.finish is None:
                self._see(event)
        assert list(self.pieces) == list(range(1, NUM_TOKENS + 1))
        return "".join(text for _, text in self.pieces.values())

    def _see(self, event: Event) -> None:
        """Take tokens; those that were seen before have to be the same again."""
        assert event.start == self.cursor + 1
        start = event.ends[-1] - len(event.text)
        begin = 0
        for offset, (token_id, end) in enumerate(zip(event.ids, event.ends, strict=True)):
            piece = (token_id, event.text[begin : end - start])
            begin = end - start
            assert self.pieces.setdefault(event.start + offset, piece) == piece
        self.cursor = event.to


async def test_readers_come_and_go_at_random_cursors(
    client: AsyncClient, rng: random.Random, redis_url: str
) -> None:
    """Thousands of times subscribed, left and resumed: every reader ends with the exact text."""
    ride = Ride(client, NullCargo(TOKENS_PER_S), rng, redis_url)
    async with forked_worker(**ride.settings()):
        # A ride shortens the jobs by up to seven tokens; here all have the same length.
        jobs = [
            await client.submit(f"order {number}", seed=number, max_tokens=NUM_TOKENS)
            for number in range(NUM_READERS)
        ]
        readers = [Restless(client, job.job_id, rng) for job in jobs]
        async with asyncio.timeout(ride.patience_s), asyncio.TaskGroup() as tasks:
            for reader in readers:
                tasks.create_task(reader.cycle(-(-NUM_CYCLES // NUM_READERS)))
        for reader in readers:
            text = await reader.read_on()
            result = await client.result(reader.job_id)
            assert text == result.text
            assert (
                tuple(token_id for token_id, _ in reader.pieces.values()) == result.choices[0].ids
            )
        await ride.check_nothing_left()
