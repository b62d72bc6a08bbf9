"""Ends of a model: every one that its files name ends a text, where transformers would end it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from models.ending_families import FAMILIES, EndingModel

from tokenbus.engine.llm import LLM
from tokenbus.engine.types import FinishReason, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NUM_TOKENS = 24
# What the best logit is ahead of an end's, about: with it each end comes soon, but rarely at once.
BIAS = 6.0


@pytest.fixture(params=["gpt-oss", *(pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES)])
def family(request: pytest.FixtureRequest) -> str:
    """Return the name of a family; all of them in the long run only."""
    name: str = request.param
    return name


@pytest.fixture
def model(family: str, tmp_path: Path) -> EndingModel:
    """Return a tiny model with the family's ends."""
    return EndingModel(FAMILIES[family], tmp_path)


@pytest.fixture
def llm(model: EndingModel) -> Iterator[LLM]:
    """Return the engine over its folder."""
    loaded = LLM(model.folder, dtype="float32", num_pages=200, max_num_seqs=32)
    yield loaded
    loaded.close()


def _params(**fields: Any) -> SamplingParams:
    return SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, **fields)


def test_every_end_stops_where_transformers_stops(
    family: str, model: EndingModel, llm: LLM, request: pytest.FixtureRequest
) -> None:
    """Made likely one by one, each end stops at the token at which transformers' generate does."""
    ends, rng = model.ids(FAMILIES[family].all), random.Random(3)
    is_slow = request.node.get_closest_marker("slow") is not None
    num_stops, wanted = 0, 100 if is_slow else 6
    while num_stops < wanted:
        for end in ends:
            count = max(2, 40 // len(ends)) if is_slow else 2
            prompts = [
                [rng.randrange(260) for _ in range(rng.randrange(3, 12))] for _ in range(count)
            ]
            bias = {end: BIAS + rng.random() * 6}
            expected = [model.generate(ids, ends, bias, NUM_TOKENS) for ids in prompts]
            outputs = llm.generate(list(prompts), _params(logit_bias=bias), progress=False)
            assert [output.token_ids for output in outputs] == expected
            for output in outputs:
                is_stop = output.token_ids[-1] in ends
                num_stops += is_stop
                assert output.finish_reason == (
                    FinishReason.STOP if is_stop else FinishReason.LENGTH
                )
                assert output.choices[0].stop_reason is None


def test_ignored_ends_and_least_lengths_cover_every_end(
    family: str, model: EndingModel, llm: LLM
) -> None:
    """`ignore_eos` and `min_tokens` hold for ends of whatever file."""
    ends = model.ids(FAMILIES[family].all)
    bias = dict.fromkeys(ends, 40.0)
    ignoring, waiting = llm.generate(
        [[5, 6, 7]] * 2,
        [_params(logit_bias=bias, ignore_eos=True), _params(logit_bias=bias, min_tokens=9)],
        progress=False,
    )
    assert len(ignoring.token_ids) == NUM_TOKENS
    assert set(ignoring.token_ids) <= set(ends)
    assert len(waiting.token_ids) == 10 - (waiting.token_ids[8] in ends)
    assert set(waiting.token_ids[:8]).isdisjoint(ends)


def test_special_token_as_a_stop_string_ends_a_text(
    family: str, model: EndingModel, llm: LLM
) -> None:
    """A special token that is no end stops where it is asked for by its text."""
    token = FAMILIES[family].others[0]
    bias = {model.id_of[token]: 40.0}
    shown, hidden = llm.generate(
        [[5, 6, 7]] * 2,
        [
            _params(logit_bias=bias, stop=(token,), include_stop=include)
            for include in (True, False)
        ],
        progress=False,
    )
    for output in (shown, hidden):
        assert output.choices[0].stop_reason == token
        assert output.token_ids == [model.id_of[token]]
    assert (shown.text, hidden.text) == (token, "")
