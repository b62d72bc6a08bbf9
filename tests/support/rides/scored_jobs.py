"""Constrained jobs with logprobs, and what their entries hold: in events, replays, results."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from models.raw_scores import RawScores
from patience import PATIENCE_S
from transformers import AutoTokenizer

from tokenbus.engine.types import EngineLimits
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
SHOE = {
    "type": "object",
    "properties": {"size": {"enum": ["41", "42"]}},
    "required": ["size"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "shoe", "parameters": SHOE}}]
ONLY = "The answer is always the same sentence."
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


class ScoredModel:
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
