"""Hostile grammars through real workers, beside the streams and grammars of other tenants.

`CHAOS_WORKERS` says how many workers share them, so that a machine of more cores ends sooner, and
`CHAOS_MODEL` the folder of a model to run in place of the demo one, which answers more slowly.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from models.hostile_grammars import hostile_grammar, outcome_of
from patience import PATIENCE_S
from rides.demo_cargo import DemoCargo
from rides.scale import LEASE, SEED, long_row
from workers.forkserver import forked_worker
from workers.null_workers import Story

from tokenbus.producer.errors import RequestInvalid

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient

NUM_GRAMMARS = int(os.environ.get("CHAOS_GRAMMARS", "20000"))
NUM_WORKERS = int(os.environ.get("CHAOS_WORKERS", "1"))
# For each worker.
NUM_AT_A_TIME = 64
NUM_STREAMS = 16
STREAM_TOKENS = 400
# Three runs without hostile grammars, of which the worst counts.
QUIET_S = float(os.environ.get("CHAOS_QUIET_S", "60"))
NUM_QUIET_RUNS = 3
_GOOD = "(yes|no|{})"


@dataclass(slots=True)
class Neighbours:
    """Other tenants: streams without an end, and now and then a small grammar nobody has asked."""

    client: AsyncClient
    longest_gap_s: float = 0.0
    longest_answer_s: float = 0.0
    epochs: set[int] = field(default_factory=set)
    num_answers: int = 0

    async def run(self, is_over: asyncio.Event) -> None:
        """Stream and ask until it is over."""
        async with asyncio.TaskGroup() as group:
            for number in range(NUM_WORKERS * NUM_STREAMS):
                group.create_task(self._stream(number, is_over))
            group.create_task(self._ask(is_over))

    async def _stream(self, number: int, is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            job = await self.client.submit(
                f"Story {number}:",
                tenant=f"stream-{number % 4}",
                max_tokens=STREAM_TOKENS,
                temperature=0.0,
                ignore_eos=True,
            )
            seen_at = None
            story = Story(job.job_id)
            async for event in self.client.stream(job):
                story.see(event)
                now = time.monotonic()
                if seen_at is not None:
                    self.longest_gap_s = max(self.longest_gap_s, now - seen_at)
                seen_at = now
                if is_over.is_set() and story.finish is None:
                    await self.client.cancel(job)
                    break
            assert story.finish is None or story.reason in ("length", "stop"), story.finish
            self.epochs |= story.epochs

    async def _ask(self, is_over: asyncio.Event) -> None:
        while not is_over.is_set():
            begins = time.monotonic()
            source = _GOOD.format(self.num_answers)
            job = await self.client.submit(
                "Is it?", tenant="asking", max_tokens=8, grammar={"kind": "regex", "source": source}
            )
            result = await self.client.result(job, PATIENCE_S)
            self.longest_answer_s = max(self.longest_answer_s, time.monotonic() - begins)
            self.num_answers += 1
            assert result.finish.reason == "stop"
            await asyncio.sleep(0.5)


@pytest.fixture
def settings(demo_folder: Path) -> dict[str, Any]:
    """Give a worker of the demo model."""
    return DemoCargo(demo_folder).settings | LEASE | {"max_num_seqs": 96}


async def _send(
    client: AsyncClient, drawing: Executor, seeds: asyncio.Queue[int], outcomes: Counter[str]
) -> None:
    """Send hostile grammars one after the other and count how they end."""
    loop = asyncio.get_running_loop()
    while not seeds.empty():
        grammar = await loop.run_in_executor(drawing, hostile_grammar, seeds.get_nowait())
        spec = {"kind": grammar.spec.kind.value, "source": grammar.spec.source}
        try:
            job = await client.submit("Say", tenant="hostile", max_tokens=16, grammar=spec)
        except RequestInvalid:
            outcomes["refused at the door"] += 1
            continue
        story = Story(job.job_id)
        async for event in client.stream(job):
            story.see(event)
        assert story.finish is not None
        assert story.epochs <= {1}, f"seed {grammar.seed}: an engine or worker died"
        error = story.finish.error
        if error is not None:
            assert error.code == "grammar", (grammar.seed, error)
        outcomes[outcome_of(error.message if error else "")] += 1


async def _quiet_run(client: AsyncClient) -> Neighbours:
    neighbours, is_over = Neighbours(client), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(neighbours.run(is_over))
        await asyncio.sleep(QUIET_S)
        is_over.set()
    return neighbours


@long_row
async def test_hostile_grammars_hurt_nobody_else(
    client: AsyncClient, settings: dict[str, Any], redis_url: str, pool: str
) -> None:
    """No engine dies, each bad grammar ends its own job; the gaps of the others are printed."""
    first = SEED % 1_000_000
    outcomes: Counter[str] = Counter()
    seeds: asyncio.Queue[int] = asyncio.Queue()
    for seed in range(first, first + NUM_GRAMMARS):
        seeds.put_nowait(seed)
    # Elsewhere: a large grammar takes long to draw, and the streams are read and timed here.
    drawing = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    async with AsyncExitStack() as workers:
        for _ in range(NUM_WORKERS):
            await workers.enter_async_context(
                forked_worker(redis_url=redis_url, pool=pool, **settings)
            )
        quiet = [await _quiet_run(client) for _ in range(NUM_QUIET_RUNS)]
        neighbours, is_over = Neighbours(client), asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(neighbours.run(is_over))
            async with asyncio.TaskGroup() as senders:
                for _ in range(NUM_WORKERS * NUM_AT_A_TIME):
                    senders.create_task(_send(client, drawing, seeds, outcomes))
            is_over.set()
    drawing.shutdown()
    gap_s = max(run.longest_gap_s for run in quiet)
    answer_s = max(run.longest_answer_s for run in quiet)
    print(f"{NUM_GRAMMARS} grammars, seeds from {first}: {dict(outcomes)}")
    print(f"longest gap of a stream {neighbours.longest_gap_s:.3f} s, {gap_s:.3f} s without them")
    print(
        f"longest wait for a small grammar {neighbours.longest_answer_s:.3f} s"
        f" ({neighbours.num_answers} of them), {answer_s:.3f} s without"
    )
    assert outcomes.total() == NUM_GRAMMARS
    assert neighbours.epochs == {1}
    assert neighbours.num_answers > 0
