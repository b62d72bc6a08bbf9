"""What a pull brought comes to the engine together, and each job fails alone."""

from __future__ import annotations

import asyncio
import json
from itertools import pairwise
from threading import Event
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from patience import PATIENCE_S
from workers.parts import a_member, an_engine, page_budget_of

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import EngineLimits
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.held.held_jobs import HeldJobs
from tokenbus.worker.jobs.head_of_line import HeadOfLine
from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
from tokenbus.worker.jobs.log_opening import LogOpener
from tokenbus.worker.jobs.prompt import PromptPreparer
from tokenbus.worker.jobs.settlement import Settlement
from tokenbus.worker.jobs.start import Starter
from tokenbus.worker.jobs.suspects import Suspects
from tokenbus.worker.messages.engine import AddRequest
from tokenbus.worker.pool.arrivals import SLICE_JOBS, Arrivals
from tokenbus.worker.pool.parking import Parking
from tokenbus.worker.request_tools import has_tools
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.held.held_job import HeldJob

LIMITS = EngineLimits("m", 10_000, 16, 256, 1024, (), 512)
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"properties": {}}}}


class Landing:
    """A worker's way from the pull's answer to the engine, `sent` being what that was given."""

    def __init__(self) -> None:
        held_jobs = HeldJobs()
        member = a_member(held_jobs=held_jobs)
        engine, self.sent = an_engine()
        page_budget = page_budget_of(held_jobs, LIMITS.num_pages, LIMITS.max_num_seqs)
        settlement = Settlement(member, engine)
        parking = Parking(member, settlement, page_budget)
        settings = WorkerSettings(pool="p").chat_settings()
        self.preparer = PromptPreparer(build_null_tokenizer(), LIMITS, chat_settings=settings)
        self.starter = Starter(
            settlement=settlement,
            parking=parking,
            page_budget=page_budget,
            preparer=self.preparer,
            engine=engine,
            metrics=member.metrics,
        )
        head_of_line = HeadOfLine(held_jobs, self.starter, parking)
        self.arrivals = Arrivals(
            member,
            starter=self.starter,
            log_opener=LogOpener(self.starter, Mock(), LIMITS),
            head_of_line=head_of_line,
            page_budget=page_budget,
            prefixes=HeldPrefixes(page_budget),
            suspects=Suspects(
                held_jobs,
                settlement=settlement,
                head_of_line=head_of_line,
                metrics=member.metrics,
            ),
            refusals=Mock(),
        )

    def register(self, *requests: dict[str, Any] | bytes, tenant: str = "t") -> list[HeldJob]:
        """Take jobs, as a pull brings them."""
        raws = [
            request if isinstance(request, bytes) else json.dumps(request).encode()
            for request in requests
        ]
        return [
            self.arrivals.register(PulledJob(f"j{num}", 1, 0, 1, tenant, 20, False, 0, None, raw))
            for num, raw in enumerate(raws, len(self.arrivals._held_jobs))
        ]


def chat(content: str, **fields: Any) -> dict[str, Any]:
    """Make a conversation of one turn."""
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 4, **fields}


async def test_jobs_of_one_pull_are_prepared_as_each_is_alone() -> None:
    """Prompts of every kind come to the engine in their order, but for tools; bad ones are told."""
    landing = Landing()
    requests: list[dict[str, Any] | bytes] = [
        {"prompt": "hé", "max_tokens": 4},
        {"token_ids": [1, 2, 511], "max_tokens": 4},
        b"no json",
        chat("hello"),
        {"token_ids": [1, 512], "max_tokens": 4},
        {"prompt": "", "max_tokens": 4},
        chat("what time is it?", tools=[TOOL]),
        {"prompt": "x" * 300, "max_tokens": 4},
        {"prompt": "x" * 254, "max_tokens": 4},
        {"prompt": "x" * 5000, "max_tokens": 4},
        {"prompt": "last", "max_tokens": 4},
    ]
    jobs = landing.register(*requests)
    await landing.arrivals.bring_in(jobs)
    told = {job.job_id: (job.refusal.code, job.refusal.field) for job in jobs if job.refusal}
    assert told == {
        "j2": ("invalid_request", "job"),
        "j4": ("invalid_request", "token_ids"),
        "j5": ("invalid_request", "prompt"),
        "j7": ("too_long", "prompt"),
        "j8": ("too_long", "max_tokens"),
        "j9": ("too_long", "prompt"),
    }
    good = [job for job in jobs if job.refusal is None]
    alone = [landing.preparer.tokenise(landing.preparer.read(job.pulled.request)) for job in good]
    assert [job.prepared for job in good] == alone
    given = [order.request.request_id for order in landing.sent if isinstance(order, AddRequest)]
    plain = [job.request_id for job in good if not has_tools(job.pulled.request)]
    assert [each for each in given if each in plain] == plain
    assert sorted(given) == sorted(job.request_id for job in good)
    assert Phase.RUNNING not in {job.phase for job in jobs if job.refusal}


async def test_schemas_of_tools_hold_up_nobody() -> None:
    """While those of a tenant are worked on, jobs without any start, and so do another's tools."""
    landing = Landing()
    calling, is_worked_on, may_end = landing.preparer._calling, Event(), Event()

    def held_up(tools: list[dict[str, Any]]) -> Any:
        if any(tool["function"]["name"] == "heavy" for tool in tools):
            is_worked_on.set()
            assert may_end.wait(PATIENCE_S)
        return calling(tools)

    patched: Any = landing.preparer
    patched._calling = held_up
    function: Any = TOOL["function"]
    heavy = {"type": "function", "function": {**function, "name": "heavy"}}
    jobs = landing.register(
        *[chat("hello", tools=[heavy])] * 20, chat("hello"), {"prompt": "a", "max_tokens": 4}
    )
    [other] = landing.register(chat("hello", tools=[TOOL]), tenant="other")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(landing.arrivals.bring_in(jobs))
        assert await asyncio.to_thread(is_worked_on.wait, PATIENCE_S)
        await landing.arrivals.bring_in([other])
        running = [job.phase is Phase.RUNNING for job in jobs]
        may_end.set()
    assert other.phase is Phase.RUNNING
    assert running == [False] * 20 + [True] * 2
    assert all(job.phase is Phase.RUNNING for job in jobs)


class _Encoder:
    """An encoder that breaks on one text in a way of its own."""

    def __init__(self, encoder: Any) -> None:
        self._encoder = encoder

    def encode(self, texts: Sequence[str], **options: Any) -> list[Any]:
        """Encode all but that text."""
        found = self._encoder.encode(texts, **options)
        return [
            RuntimeError("it broke") if text == "broken" else ids
            for text, ids in zip(texts, found, strict=True)
        ]


async def test_prompt_that_breaks_the_tokenizer_fails_alone() -> None:
    """Those beside it run, and the job says what happened."""
    landing = Landing()
    encoder: Any = _Encoder(landing.preparer._encoder)
    landing.preparer._encoder = encoder
    jobs = landing.register({"prompt": "a"}, {"prompt": "broken"}, {"prompt": "b"})
    await landing.arrivals.bring_in(jobs)
    assert [job.phase is Phase.RUNNING for job in jobs] == [True, False, True]
    assert jobs[1].refusal is not None
    assert jobs[1].refusal.code == "internal"
    assert "it broke" in jobs[1].refusal.message


@pytest.mark.parametrize("length", [10, 250])
async def test_many_jobs_are_brought_in_by_the_slice(length: int) -> None:
    """No job has a task of its own, and others have their turn between two slices.

    Longer prompts are tokenised in threads, which come back when they like.
    """
    landing = Landing()
    jobs = landing.register(*[{"prompt": "x" * length, "max_tokens": 4}] * (4 * SLICE_JOBS))
    loop, num_tasks, running_at_turns = asyncio.get_running_loop(), 0, []

    def make_task(loop: Any, calls: Any, **options: Any) -> asyncio.Task[Any]:
        nonlocal num_tasks
        num_tasks += 1
        return asyncio.Task(calls, loop=loop, **options)

    def turn() -> None:
        running_at_turns.append(sum(job.phase is Phase.RUNNING for job in jobs))
        if running_at_turns[-1] < len(jobs):
            loop.call_soon(turn)

    factory: Any = make_task
    loop.set_task_factory(factory)
    try:
        turn()
        await landing.arrivals.bring_in(jobs)
    finally:
        loop.set_task_factory(None)
    assert num_tasks == 4
    assert running_at_turns[-1] <= len(jobs) == sum(job.phase is Phase.RUNNING for job in jobs)
    if length < 64:
        steps = [after - before for before, after in pairwise(running_at_turns)]
        assert max(steps) == SLICE_JOBS
