"""A hundred schemas under random logits: every finished output validates."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema
import torch

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.types import GrammarKind, GrammarSpec, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarCompiler, GrammarMatcher

SEEDS = range(12)
MAX_TOKENS = 400

# Schemas that leave one value; all others have to vary.
SINGLE_VALUED = {
    "const-number",
    "const-object",
    "const-string",
    "empty-array",
    "empty-object",
    "empty-only",
    "reference-chain",
}


def sample_batch(
    matchers: list[GrammarMatcher], seeds: list[int], vocab_size: int, eos_id: int
) -> list[list[int] | None]:
    """Draw every row to its end with noise for logits.

    None stands for a row that reached the limit, or a key where every one had come already.
    """
    state = SamplingState(len(matchers), vocab_size, "cpu", (eos_id,))
    for row, seed in enumerate(seeds):
        state.set_row(row, SamplingParams(temperature=1.5, seed=seed), 0, [1])
    outputs: list[list[int] | None] = [[] for _ in matchers]
    running = list(range(len(matchers)))
    generator = torch.Generator().manual_seed(0)
    for position in range(MAX_TOKENS):
        masks_by_row = {}
        for row in list(running):
            try:
                masks_by_row[row] = matchers[row].mask()
            except GrammarRejected:
                running.remove(row)
                outputs[row] = None
        masks = torch.stack(list(masks_by_row.values()))
        logits = torch.randn(len(running), vocab_size, generator=generator)
        rows, positions = torch.tensor(running), torch.full((len(running),), position)
        sampled = state.sample(logits, rows, positions, bitmask=masks)
        assert (sampled.token_ids >= 0).all()
        for row, token_id in zip(list(running), sampled.token_ids.tolist(), strict=True):
            if token_id == eos_id:
                assert matchers[row].is_accepting
                running.remove(row)
                continue
            matchers[row].accept(token_id)
            output = outputs[row]
            assert output is not None
            output.append(token_id)
        if not running:
            return outputs
    for row in running:
        outputs[row] = None
    return outputs


def test_every_finished_output_validates(
    schemas: dict[str, dict[str, Any]],
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Nearly all runs finish, all finished ones validate, and values vary where there is room."""
    assert len(schemas) == 100
    runs = [(name, seed) for name in schemas for seed in SEEDS]
    compiled = {
        name: compiler.compile(GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
        for name, schema in schemas.items()
    }
    matchers = [compiled[name].matcher() for name, _ in runs]
    outputs = sample_batch(matchers, [seed for _, seed in runs], len(tokenizer) + 13, 0)
    texts: dict[str, set[str]] = {name: set() for name in schemas}
    for (name, _), ids in zip(runs, outputs, strict=True):
        if ids is not None:
            text = tokenizer.decode(ids)
            assert isinstance(text, str)
            checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
            jsonschema.validate(json.loads(text), schemas[name], format_checker=checker)
            texts[name].add(text)
    num_finished = sum(ids is not None for ids in outputs)
    assert num_finished >= 0.95 * len(runs)
    constant = {name for name, seen in texts.items() if len(seen) == 1}
    assert constant == SINGLE_VALUED
