"""Ends through the queue: stop strings that are special tokens, and ends of every file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from models.ending_families import FAMILIES, EndingModel
from workers.null_workers import worker

from tokenbus.engine.llm import LLM
from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient

SIZES: dict[str, Any] = {"dtype": "float32", "device": "cpu", "num_pages": 64}


def _offline(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a request with tuples for lists."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}


@pytest.mark.slow
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
@pytest.mark.parametrize("publishers", [0, 1], ids=["in the worker", "in a process"])
async def test_ends_through_the_queue_are_those_of_the_offline_api(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path, publishers: int
) -> None:
    """Text, ids and reason of each kind of end are the same through both doors."""
    model = EndingModel(FAMILIES["gpt-oss"], tmp_path)
    end, call, marker = model.ids(("<|return|>", "<|call|>", "<|channel|>"))
    asked: list[dict[str, Any]] = [
        {"logit_bias": {end: 9.0}},
        {"logit_bias": {call: 9.0}, "stop": ["<|call|>"]},
        {"logit_bias": {marker: 9.0}, "stop": ["<|channel|>"]},
        {"logit_bias": {marker: 9.0}, "stop": ["<|channel|>"], "include_stop": True},
        {"logit_bias": {marker: 9.0}, "stop_token_ids": [marker], "min_tokens": 4},
        {"logit_bias": {end: 40.0}, "ignore_eos": True},
    ]
    common: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0}
    llm = LLM(tmp_path, **SIZES)
    params = [SamplingParams(**common, **_offline(fields)) for fields in asked]
    offline = llm.generate([[5, 6, 7]] * len(asked), params, progress=False)
    llm.close()
    settings = {"engine": "paged", "model": str(tmp_path), "publishers": publishers, **SIZES}
    async with worker(pool, redis_url, **settings):
        jobs = [await client.submit(token_ids=[5, 6, 7], **common, **fields) for fields in asked]
        results = [await client.result(job) for job in jobs]
    for output, result in zip(offline, results, strict=True):
        choice = result.choices[0]
        assert (choice.text, list(choice.ids)) == (output.text, output.token_ids)
        assert choice.reason == output.finish_reason
        assert choice.stop_reason == output.choices[0].stop_reason
    assert [result.choices[0].stop_reason for result in results] == [
        None, None, "<|channel|>", "<|channel|>", marker, None,
    ]  # fmt: skip
