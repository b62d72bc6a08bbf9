"""Logprobs of constrained jobs: an entry per token id in events, replays and results."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from models.raw_scores import RawScores
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from transformers import AutoTokenizer
from workers.brake import Brake
from workers.null_workers import worker

from tokenbus.engine.types import EngineLimits
from tokenbus.engine.weights import model_store
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.worker.jobs.prompt import PromptPreparer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.contract.result import JobResult

SCHEMA = {
    "type": "object",
    "properties": {
        "product_name": {"type": "string", "minLength": 6, "maxLength": 12},
        "in_stock": {"type": "boolean"},
    },
    "required": ["product_name", "in_stock"],
    "additionalProperties": False,
}
# Short, as the prompt that tells of it: in fp32 the tiny model's own sums drift with its length.
SHOE = {"type": "object", "properties": {"size": {"enum": ["41", "42"]}}, "required": ["size"]}
TOOLS = [{"type": "function", "function": {"name": "shoe", "parameters": SHOE}}]
ONLY = "The answer is always the same sentence."
# Tokens that the engine may be ahead of the log.
NUM_AHEAD = 2
PROMPT: dict[str, Any] = {"prompt": "Describe a shoe.\n", "max_tokens": 80, "temperature": 1.2}


def grammar(kind: str, source: Any) -> dict[str, Any]:
    """Spell a constraint as jobs do."""
    return {"kind": kind, "source": json.dumps(source)}


SCHEMA_JOB: dict[str, Any] = {
    **PROMPT, "grammar": grammar("json_schema", SCHEMA), "logprobs": 3, "seed": 5, "n": 3,
}  # fmt: skip
JOBS: list[dict[str, Any]] = [
    SCHEMA_JOB,
    {**PROMPT, "grammar": grammar("choice", ["dark green", "dark blue"]), "logprobs": 0},
    {**PROMPT, "grammar": grammar("choice", [ONLY]), "logprobs": 1},
    {**PROMPT, "grammar": grammar("choice", [ONLY]), "logprobs": 2, "stop": ["always"]},
    {**PROMPT, "grammar": grammar("choice", [ONLY]), "logprobs": 0, "max_tokens": 4},
    {
        "messages": [{"role": "user", "content": "shoe?"}], "tools": TOOLS,
        "tool_choice": {"name": "shoe"}, "parallel_tool_calls": False,
        "temperature": 1.2, "seed": 4, "max_tokens": 120, "logprobs": 2,
    },
    {**PROMPT, "max_tokens": 6, "logprobs": 2},
]  # fmt: skip


class Model:
    """A model on disk, and what transformers says of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._scores = RawScores(folder)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        limits = EngineLimits("any", 9, 16, 1024, 8, (), len(tokenizer))
        self._preparer = PromptPreparer(tokenizer, limits)

    def check(self, asked: dict[str, Any], result: JobResult) -> None:
        """Compare the entries of all choices with transformers'."""
        prompt_ids = self._preparer.tokenise(JobRequest(**asked)).prompt_ids
        for choice in result.choices:
            entries: list[Any] = [entry[:3] for entry in choice.logprobs]
            self._scores.check(prompt_ids, choice.ids, entries, asked["logprobs"])


@pytest.fixture(params=["tiny", pytest.param("smollm2-135m", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Model:
    """Return a tiny model, or the demo model."""
    if request.param == "tiny":
        return Model(TinyModel(tmp_path).folder)
    return Model(model_store.pull(request.param))


async def read(
    client: AsyncClient,
    job_id: str,
    cursor: int = 0,
    on_event: Callable[[Event], None] | None = None,
) -> list[Event]:
    """Read the tokens of a job after a cursor, each event with an entry per id."""
    events = []
    async with asyncio.timeout(PATIENCE_S):
        async for event in client.stream(job_id, cursor):
            assert len(event.logprobs) == len(event.ids)
            if event.finish is None:
                events.append(event)
            if on_event is not None:
                on_event(event)
    return events


def columns(events: Iterable[Event], num_choices: int) -> list[tuple[list[int], list[Any]]]:
    """Return ids and entries of each choice."""
    found: list[tuple[list[int], list[Any]]] = [([], []) for _ in range(num_choices)]
    for event in events:
        ids, entries = found[event.choice]
        ids.extend(event.ids)
        entries.extend(event.logprobs)
    return found


async def check_replays(client: AsyncClient, events: list[Event], result: JobResult) -> None:
    """Check that the result and what follows each cursor, logged or kept, is what was streamed."""
    num_choices = len(result.choices)
    whole = columns(events, num_choices)
    assert [(list(each.ids), list(each.logprobs)) for each in result.choices] == whole
    for cursor in range(result.last + 1):
        wanted = columns(
            (event.after(cursor) for event in events if event.to > cursor), num_choices
        )
        assert columns(await read(client, result.job_id, cursor), num_choices) == wanted
        *kept, end = result.events(cursor)
        assert end.finish is not None
        assert all(len(event.logprobs) == len(event.ids) for event in kept)
        assert columns(kept, num_choices) == wanted


def marks(result: JobResult) -> list[str]:
    """Show what was forced, per choice."""
    return [
        "".join("f" if entry[3:] == [True] else "." for entry in choice.logprobs)
        for choice in result.choices
    ]


# One kind of server: what is shown is the engine's and the worker's, and starting them is dear.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_every_id_has_its_entry_also_after_the_engine_died(
    client: AsyncClient, redis_url: str, pool: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each equals transformers' within 1e-4, streamed, from each cursor, and in the result.

    Killed in the middle of three constrained choices, the job goes on with the same entries.
    """
    settings = {
        "engine": "paged", "model": str(model.folder), "dtype": "float32",
        "device": "cpu", "num_pages": 100, "num_threads": 1,
    }  # fmt: skip
    brake = Brake(monkeypatch, NUM_AHEAD)
    results = []
    async with worker(pool, redis_url, **settings) as running:
        for asked in JOBS:
            job = await client.submit(**asked)
            events = await read(client, job.job_id)
            results.append(await client.result(job.job_id, timeout_s=PATIENCE_S))
            model.check(asked, results[-1])
            if asked is not SCHEMA_JOB:
                await check_replays(client, events, results[-1])
        whole = results[0]
        half = whole.last // 2
        brake.set(half)
        job = await client.submit(**SCHEMA_JOB)
        killed = False

        def kill_once(event: Event) -> None:
            nonlocal killed
            if event.to >= half and not killed:
                assert running.engine_pid is not None
                killed = True
                os.kill(running.engine_pid, signal.SIGKILL)
                brake.release()

        events = await read(client, job.job_id, on_event=kill_once)
        resumed = await client.result(job.job_id, timeout_s=PATIENCE_S)
        assert len({event.epoch for event in events}) > 1
        model.check(SCHEMA_JOB, resumed)
        await check_replays(client, events, resumed)
    assert [each.ids for each in resumed.choices] == [each.ids for each in whole.choices]
    assert marks(resumed) == marks(whole)
    assert all("f" in found and "." in found for found in marks(whole))
    assert set(marks(results[2])[0]) == {"f"}
    assert [each.text for each in results[3].choices] == ["The answer is "]
    assert len(results[4].choices[0].ids) == 4
    assert results[5].tool_calls
    assert set(marks(results[6])[0]) == {"."}
