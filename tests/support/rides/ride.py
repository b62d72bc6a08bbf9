"""A busload of jobs with a reader each, and all that has to hold when the ride is over."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from patience import PATIENCE_S
from rides.scale import LEASE, PATIENT
from workers.null_workers import Story, command, expected_ids, expected_text, leaked_keys

from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.server.connection import retrying
from tokenbus.producer.server.url import ServerUrl

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from models.tiny_model import TinyModel
    from servers.wire_proxy import Trap

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.contract.events import Finish

T = TypeVar("T")

TENANTS = ("ada", "bob", "cyd")
# Tokens of an answer that lasts, and how many of them say that it has begun: its reader may hear of
# these four seconds late.
LONG_TOKENS = 400
NUM_BEGUN = 5
# What a worker is given that ends such answers after another.
FAST: dict[str, Any] = {"null_tokens_per_s": 1000}


@dataclass(frozen=True, slots=True)
class Wanted:
    """One job of the ride: a prompt, a seed and a length in tokens."""

    prompt: str
    seed: int
    num_tokens: int


class Cargo(Protocol):
    """What the jobs of a ride ask for, and what they must say."""

    settings: dict[str, Any]

    def fields(self, wanted: Wanted) -> dict[str, Any]:
        """Return the request's fields beside prompt, seed and length."""
        ...

    def check(self, wanted: Wanted, story: Story) -> None:
        """Compare what a reader saw with the unbroken run."""
        ...


class NullCargo:
    """Made-up tokens, at a pace that leaves time to fail: the protocol alone is tried."""

    def __init__(self, tokens_per_s: float) -> None:
        self.settings: dict[str, Any] = {"engine": "null", "null_tokens_per_s": tokens_per_s}

    def fields(self, wanted: Wanted) -> dict[str, Any]:  # noqa: ARG002 -- all jobs are alike
        """Ask for nothing special."""
        return {}

    def check(self, wanted: Wanted, story: Story) -> None:
        """Every token and every character is that of the unbroken run."""
        assert story.ids.get(0, []) == expected_ids(wanted.seed, wanted.num_tokens)
        assert story.text == expected_text(wanted.seed, wanted.num_tokens)


class ModelCargo:
    """Greedy answers of a real fp32 model."""

    def __init__(self, model: TinyModel) -> None:
        self._model = model
        self.num_cut_short = 0
        self.settings: dict[str, Any] = {
            "engine": "paged",
            "model": str(model.folder),
            "dtype": "float32",
            "device": "cpu",
            "num_pages": 512,
            "max_num_seqs": 64,
            "num_threads": 1,
        }

    def fields(self, wanted: Wanted) -> dict[str, Any]:  # noqa: ARG002 -- all jobs are alike
        """Ask for the greedy answer."""
        return {"temperature": 0.0}

    def check(self, wanted: Wanted, story: Story) -> None:
        """Equal to transformers up to the first near tie, and the text is that of the tokens."""
        ids = story.ids.get(0, [])
        assert len(ids) == wanted.num_tokens
        certain = self._model.num_certain(wanted.prompt, tuple(ids))
        self.num_cut_short += certain < wanted.num_tokens
        assert story.text == self._model.text(ids)


@dataclass(slots=True)
class Ride:
    """Jobs under way, each read by a reader of its own that checks every index."""

    client: AsyncClient
    cargo: Cargo
    rng: random.Random
    redis_url: str
    patience_s: float = PATIENCE_S
    # Whether the server loses what it had accepted, once or more often.
    is_rolled_back: bool = False
    wanted: dict[str, Wanted] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    _stories: dict[str, Story] = field(default_factory=dict)
    _readers: dict[str, asyncio.Task[Story]] = field(default_factory=dict)
    _progress: asyncio.Event = field(default_factory=asyncio.Event)

    def settings(self, **values: Any) -> dict[str, Any]:
        """Return the settings of a worker of this ride."""
        own = {"redis_url": self.redis_url, "pool": self.client.scripts.keys.pool}
        return own | LEASE | self.cargo.settings | values

    async def board(self, num_jobs: int, num_tokens: int = 40, **fields: Any) -> None:
        """Submit jobs of about `num_tokens` each and start their readers."""
        for number in range(num_jobs):
            wanted = Wanted(
                f"order {number % 40} of {self.rng.choice(TENANTS)}",
                self.rng.randrange(1 << 30),
                max(1, num_tokens - number % 8),
            )
            chosen: dict[str, Any] = {
                "tenant": self.rng.choice(TENANTS),
                "priority": self.rng.randrange(3),
            }
            job = await self.client.submit(
                wanted.prompt,
                seed=wanted.seed,
                max_tokens=wanted.num_tokens,
                **(chosen | self.cargo.fields(wanted) | fields),
            )
            self.wanted[job.job_id] = wanted
            self.seen[job.job_id] = 0
            story = self._stories[job.job_id] = Story(job.job_id, tenant=job.tenant)
            self._readers[job.job_id] = asyncio.create_task(self._read(story))

    @property
    def addresses(self) -> list[JobAddress]:
        """List the jobs on board by tenant and id."""
        return [JobAddress(story.job_id, story.tenant) for story in self._stories.values()]

    async def board_long(self) -> None:
        """Submit one urgent job more and wait until it is certain to be amid its answer.

        Readers hear of tokens late on a loaded machine; the others may have ended meanwhile.
        """
        before = set(self.wanted)
        await self.board(1, LONG_TOKENS, priority=0)
        [job_id] = self.wanted.keys() - before
        await self._until(lambda: self.seen[job_id] >= NUM_BEGUN)

    def went_on(self, epochs: dict[str, int]) -> bool:
        """Tell whether readers have seen of each job a token of a later epoch, or its end."""
        stories = [(self._stories[job_id], epoch) for job_id, epoch in epochs.items()]
        return all(story.finish or max(story.epochs, default=0) > at for story, at in stories)

    async def _until_ended(self) -> None:
        await self._until(lambda: all(story.finish for story in self._stories.values()))

    async def until_seen(self, num_tokens: int, num_jobs: int = 1) -> None:
        """Wait until that many readers have seen that many tokens."""
        await self._until(
            lambda: sum(last >= num_tokens for last in self.seen.values()) >= num_jobs
        )

    async def until_more(self, num_tokens: int) -> None:
        """Wait until all readers together have seen that many tokens more, or all there are.

        Where the machine is busy, all jobs may have ended before the last one's reader ran.
        """
        goal = sum(self.seen.values()) + num_tokens
        stories = self._stories.values()
        await self._until(
            lambda: sum(self.seen.values()) >= goal or all(story.finish for story in stories)
        )

    async def until_closed(self, traps: Sequence[Trap]) -> None:
        """Wait until traps have closed; where all jobs have ended before, more come on board.

        Answers that a busy worker has whole are one call, in which others do not occur.
        """
        closing: asyncio.Future[Any] = asyncio.gather(*(trap.closed() for trap in traps))
        while True:
            ended: asyncio.Future[Any] = asyncio.create_task(self._until_ended())
            await asyncio.wait({closing, ended}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if closing.done():
                await closing
                return
            await self.board(2, LONG_TOKENS)

    async def vanish(self) -> dict[str, Story]:
        """Let every reader go away; return what each has seen."""
        for reader in self._readers.values():
            reader.cancel()
        await asyncio.gather(*self._readers.values(), return_exceptions=True)
        return self._stories

    async def come_back(self, stories: dict[str, Story]) -> None:
        """Let readers go on from what they had seen."""
        for job_id, story in stories.items():
            self._readers[job_id] = asyncio.create_task(self._read(story))

    async def end(self) -> dict[str, Story]:
        """Wait for all ends, whatever they are; each result says what was read."""
        async with asyncio.timeout(self.patience_s):
            stories = await asyncio.gather(*self._readers.values())
        await self.check_records(stories)
        return {story.job_id: story for story in stories}

    async def arrive(self) -> dict[str, Story]:
        """Wait for all ends; each text is that of the unbroken run."""
        stories = await self.end()
        for job_id, story in stories.items():
            assert story.reason == "length", (job_id, story.finish)
            self.cargo.check(self.wanted[job_id], story)
        return stories

    async def check_records(self, stories: list[Story]) -> None:
        """The result says what the reader saw, and a log that is kept has one terminal entry."""
        scripts = self.client.scripts
        for story in stories:
            events = await self._ask(partial(scripts.log.events, story.address))
            if events is not None:
                assert [e.finish is not None for e in events].count(True) == 1, story.job_id
            value = await self._ask(partial(scripts.log.result, story.address))
            assert value is not None, story.job_id
            result = JobResult.parse(value)
            assert story.finish is not None
            assert self._comparable(result.finish) == self._comparable(story.finish)
            assert {c.index: list(c.ids) for c in result.choices if c.ids} == story.ids
            assert {c.index: c.text for c in result.choices if c.ids} == story.texts

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        """Read what a check needs, again where a busy machine was too slow for one call's time."""
        return await retrying(call, ServerUrl.parse(self.redis_url), PATIENT.retry_for_s)

    def _comparable(self, finish: Finish) -> Finish:
        """Leave out what an end that is written again may say otherwise.

        Where the server forgets an end that a reader has seen, the last tokens are computed again,
        and more of the prompt comes from the cache than at first.
        """
        if not self.is_rolled_back:
            return finish
        return replace(finish, usage=replace(finish.usage, cached_tokens=0))

    async def check_nothing_left(self) -> None:
        """Wait until the pool is at rest: no key without an owner, no page held."""
        left: list[str] = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                while left := await self._left():  # noqa: ASYNC110 -- no event tells
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"the pool does not come to rest: {left}") from None

    async def _left(self) -> list[str]:
        """Name what is not at rest yet."""
        scripts = self.client.scripts
        left = await leaked_keys(scripts)
        load = await scripts.lease.load()
        left += [f"load {name} {value}" for name, value in load.items() if value]
        for worker, engine in (await self._engines()).items():
            free = engine["free_pages"] + engine["evictable_pages"]
            if engine["num_running"] or engine["num_waiting"] or free != engine["num_pages"] - 1:
                left.append(f"engine of {worker}: {engine}")
        return left

    async def num_accepted(self) -> int:
        """Count the drafted tokens that were right, of the engines that live."""
        counts = [engine["drafts_total"] for engine in (await self._engines()).values()]
        return sum(accepted for drafts in counts for _, (_, accepted) in drafts)

    async def _engines(self) -> dict[str, dict[str, Any]]:
        """Return what workers tell of their engines, those that have one."""
        scripts, found = self.client.scripts, {}
        for raw in await command(scripts, "SMEMBERS", scripts.keys.of("workers")):
            value = await command(scripts, "GET", scripts.keys.of("status", raw.decode()))
            engine = json.loads(value)["engine"] if value else None
            if engine is not None:
                found[raw.decode()] = engine
        return found

    async def _read(self, story: Story) -> Story:
        if story.finish is not None:
            return story
        async for event in self.client.stream(story.job_id, story.last, story.tenant):
            story.see(event)
            self.seen[story.job_id] = story.last
            self._progress.set()
        return story

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(self.patience_s):
            while not condition():
                self._progress.clear()
                await self._progress.wait()
