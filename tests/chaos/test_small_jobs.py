"""Many jobs of a token or three while workers are killed: each ends once, with its exact text."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from rides.ride import NullCargo, Ride
from rides.scale import long_row, short_row
from workers.forkserver import ForkedWorker, forked_worker
from workers.null_workers import Story, expected_ids

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.producer.client.async_client import AsyncClient, Job
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    import random

TENANTS = ("ada", "bob", "cyd")
PROMPT = [ord(letter) for letter in "is it ok"]
# Of one submit, and at most under way.
NUM_TOGETHER, MOST_OPEN = 50, 150
# Readers look after silent jobs as often as users' do: on a busy machine hundreds that do it more
# often are a load that keeps the jobs from ending.
SETTINGS = ClientSettings(retry_for_s=120, silence_s=2)
MOST_TOKENS = 3
NUM_WORKERS = 2
MORE_KILLS = 3
# Of each sequence: slow enough that a worker holds jobs whenever it is killed.
TOKENS_PER_S = 200


@dataclass(slots=True)
class SmallJobs:
    """Jobs that are submitted while others end, a reader each."""

    client: AsyncClient
    rng: random.Random
    lengths: dict[str, tuple[int, int]] = field(default_factory=dict)
    stories: dict[str, Story] = field(default_factory=dict)
    num_ended: int = 0
    _moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def send(self, num_jobs: int) -> None:
        """Submit jobs and read all of them to their ends."""
        async with asyncio.TaskGroup() as readers:
            for first in range(0, num_jobs, NUM_TOGETHER):
                part = range(first, min(first + NUM_TOGETHER, num_jobs))
                await self.until(first - MOST_OPEN)
                requests = [self._request(seed) for seed in part]
                for request, job in zip(
                    requests, await self.client.submit_many(requests), strict=True
                ):
                    assert isinstance(job, Job)
                    self.lengths[job.job_id] = request["seed"], request["max_tokens"]
                    story = self.stories[job.job_id] = Story(job.job_id, tenant=job.tenant)
                    readers.create_task(self._read(job, story))

    async def until(self, num_ended: int) -> None:
        """Wait until that many jobs have ended."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.num_ended >= num_ended)

    @property
    def was_hit(self) -> bool:
        """Whether a job has changed hands."""
        return any(max(story.epochs, default=0) > 1 for story in self.stories.values())

    def check(self) -> None:
        """Every token and character is that of the unbroken run, with one end at its length."""
        tokenizer = build_null_tokenizer()
        for job_id, (seed, num_tokens) in self.lengths.items():
            story = self.stories[job_id]
            ids = expected_ids(seed, num_tokens)
            assert story.reason == "length", (job_id, story.finish)
            assert story.ids.get(0) == ids, job_id
            assert story.text == tokenizer.decode(ids), job_id

    async def check_results(self) -> None:
        """What is kept of each job says what its reader saw, and a log that is kept ends once."""
        log = self.client.scripts.log
        for first in range(0, len(self.stories), NUM_TOGETHER):
            part = list(self.stories.values())[first : first + NUM_TOGETHER]
            calls = (self.client.result(each.job_id, tenant=each.tenant) for each in part)
            for story, result in zip(part, await asyncio.gather(*calls), strict=True):
                assert list(result.choices[0].ids) == story.ids[0]
                assert (result.text, result.finish) == (story.text, story.finish)
            logs = await asyncio.gather(*(log.events(story.address) for story in part))
            assert all(
                [e.finish is not None for e in kept].count(True) == 1 for kept in logs if kept
            )

    def _request(self, seed: int) -> dict[str, Any]:
        return {
            "token_ids": PROMPT,
            "seed": seed,
            "max_tokens": 1 + seed % MOST_TOKENS,
            "ignore_eos": True,
            "tenant": self.rng.choice(TENANTS),
            "priority": self.rng.randrange(3),
        }

    async def _read(self, job: Job, story: Story) -> None:
        async for event in self.client.stream(job):
            story.see(event)
        async with self._moved:
            self.num_ended += 1
            self._moved.notify_all()


async def _kill_workers(ride: Ride, jobs: SmallJobs, num_jobs: int, num_kills: int) -> None:
    """Kill a worker at even shares of the ends, and let another take its place each time.

    Jobs of a few tokens are written in a call or two: a few more kills follow where none met any.
    """
    settings = ride.settings(max_num_seqs=32, max_pull_jobs=32)
    async with AsyncExitStack() as stack:

        async def start() -> ForkedWorker:
            return await stack.enter_async_context(forked_worker(**settings))

        workers = [await start() for _ in range(NUM_WORKERS)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(jobs.send(num_jobs))
            for number in range(num_kills + MORE_KILLS):
                await jobs.until((number + 1) * num_jobs // (num_kills + MORE_KILLS + 1))
                if number >= num_kills and jobs.was_hit:
                    continue
                # The one that has served longest: the other may only just have started.
                victim = workers.pop(0)
                victim.kill()
                workers.append(await start())
        await ride.check_nothing_left()


@pytest.mark.parametrize(
    ("num_jobs", "num_kills"),
    [
        pytest.param(300, 2, marks=short_row),
        pytest.param(20_000, 10, marks=long_row),
    ],
)
async def test_small_jobs_outlive_their_workers(
    redis_url: str, pool: str, rng: random.Random, num_jobs: int, num_kills: int
) -> None:
    """Workers are killed while they hold dozens of jobs in every stage: none is lost or doubled."""
    async with await AsyncClient.connect(redis_url, pool=pool, settings=SETTINGS) as client:
        ride = Ride(client, NullCargo(tokens_per_s=TOKENS_PER_S), rng, redis_url)
        jobs = SmallJobs(client, rng)
        async with asyncio.timeout(PATIENCE_S + num_jobs / 50):
            await _kill_workers(ride, jobs, num_jobs, num_kills)
            await jobs.check_results()
    jobs.check()
    assert jobs.num_ended == len(jobs.stories) == num_jobs
    assert jobs.was_hit, "no kill hit a job"
