"""The same seed draws the same tokens, whatever else happens in the engine.

A draw inverts the running sum of the probabilities. Batches and chunks change the order of sums
inside the model, so that a draw within rounding of a border may fall on either side of it: such
draws are counted, every other difference is an error.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from models.scheduler_bench import Optimist

from tokenbus.engine.sampling.random_draw import uniform
from tokenbus.engine.types import Request, SamplingParams

NUM_PROMPTS = 24
NUM_TOKENS = 50
BORDER = 1e-5
MAX_BORDER_SHARE = 1e-3
CUTS = (1, 20, 49)

FILTERS = {
    "hot": SamplingParams(temperature=1.5, max_tokens=NUM_TOKENS),
    "filtered": SamplingParams(temperature=0.8, top_k=50, top_p=0.95, max_tokens=NUM_TOKENS),
}


def border_distance(tiny: Any, prompt: tuple[int, ...], tokens: list[int], seed: int) -> float:
    """Return how far the draw behind `tokens` lies from a border, unfiltered, by transformers."""
    with torch.inference_mode():
        logits = tiny.reference(torch.tensor([[*prompt, *tokens]])).logits[0, -1].double()
    borders = (logits / 1.5).softmax(-1).cumsum(-1)
    return float((borders - uniform(seed, 0, len(tokens))).abs().min())


@pytest.mark.slow
@pytest.mark.parametrize("name", FILTERS)
def test_seed_gives_the_same_tokens_alone_batched_preempted_and_resumed(
    tiny: Any, run: Any, name: str
) -> None:
    """At most one draw in a thousand lies at a border; all others are equal, and texts differ."""
    source = random.Random(11)
    prompts = [
        tuple(source.randrange(320) for _ in range(source.choice([1, 15, 17, 40, 90])))
        for _ in range(NUM_PROMPTS)
    ]
    requests = [
        Request(idx, prompt, replace(FILTERS[name], seed=100 + idx))
        for idx, prompt in enumerate(prompts)
    ]
    alone = [run(tiny.engine(), [request])[request.request_id, 0].token_ids for request in requests]
    assert len({tuple(tokens) for tokens in alone}) == NUM_PROMPTS
    again = [_batch(tiny, run, requests, settings) for settings in ({}, {"max_batch_tokens": 7})]
    again.append(_batch(tiny, run, requests, {"num_pages": 30}, is_tight=True))
    for cut in CUTS:
        resumed = [
            replace(request, resumed_ids=(tuple(alone[request.request_id][:cut]),))
            for request in requests
        ]
        rest = _batch(tiny, run, resumed, {})
        again.append([a[:cut] + b for a, b in zip(alone, rest, strict=True)])
    num_at_border = num_draws = 0
    for answers in again:
        for request, wanted, got in zip(requests, alone, answers, strict=True):
            equal = next((i for i in range(NUM_TOKENS) if wanted[i] != got[i]), NUM_TOKENS)
            num_draws += min(equal + 1, NUM_TOKENS)
            if equal < NUM_TOKENS:
                assert name == "hot", "a difference that the distance below cannot judge"
                tokens, seed = wanted[:equal], request.params.seed
                assert seed is not None
                assert border_distance(tiny, tuple(request.prompt_ids), tokens, seed) < BORDER
                num_at_border += 1
    assert num_draws >= 0.9 * len(again) * NUM_PROMPTS * NUM_TOKENS
    assert num_at_border < MAX_BORDER_SHARE * num_draws


def _batch(
    tiny: Any,
    run: Any,
    requests: list[Request],
    settings: dict[str, Any],
    *,
    is_tight: bool = False,
) -> list[list[int]]:
    engine = tiny.engine(**settings)
    if is_tight:
        engine._scheduler.estimator = Optimist()
    answers = run(engine, requests)
    assert (engine.stats().preemptions_total > 0) is is_tight
    return [answers[request.request_id, 0].token_ids for request in requests]
