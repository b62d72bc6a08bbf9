"""A hundred schemas, twenty seeds each, written by the demo model at temperature 1.5."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import jsonschema
import pytest

from tokenbus.engine.errors import ModelNotFound
from tokenbus.engine.llm import LLM
from tokenbus.engine.types import FinishReason, GrammarKind, GrammarSpec, SamplingParams

SEEDS = range(20)
MODEL = "smollm2-135m"


def prompt_for(schema: dict[str, Any]) -> list[dict[str, str]]:
    """Ask for one value of a schema."""
    source = json.dumps(schema)
    return [{"role": "user", "content": f"Write one JSON value of this schema: {source}"}]


@pytest.mark.slow
def test_demo_model_satisfies_every_schema(schemas: dict[str, dict[str, Any]]) -> None:
    """At least 95 % of the runs end by themselves, and every one that does validates."""
    try:
        llm = LLM(MODEL)
    except ModelNotFound:
        pytest.skip(f"{MODEL} is not installed: tokenbus model pull {MODEL}")
    runs = [(name, seed) for seed in SEEDS for name in schemas]
    outputs = llm.chat(
        [prompt_for(schemas[name]) for name, _ in runs],
        [
            SamplingParams(
                temperature=1.5,
                max_tokens=200,
                seed=seed,
                grammar=GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schemas[name])),
            )
            for name, seed in runs
        ],
        progress=False,
    )
    llm.close()
    texts: dict[str, set[str]] = defaultdict(set)
    for (name, _), output in zip(runs, outputs, strict=True):
        if output.finish_reason is FinishReason.STOP:
            checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
            jsonschema.validate(json.loads(output.text), schemas[name], format_checker=checker)
            texts[name].add(output.text)
    num_ended = sum(output.finish_reason is FinishReason.STOP for output in outputs)
    assert num_ended >= 0.95 * len(runs)
    assert sum(len(seen) > 1 for seen in texts.values()) >= 0.85 * len(schemas)
