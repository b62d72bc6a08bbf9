"""Greedy answers of an engine, few and short: enough for one row, few rows and a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from tokenbus.engine.weights.loader import LoadedModel

# The interpreter takes about 0.1 s per launch.
LENS = (1, 2, 20)
NUM_TOKENS = 2


def few_answers(loaded: LoadedModel) -> tuple[list[list[int]], torch.Tensor]:
    """Return the greedy tokens of every prompt and their log-probabilities."""
    config = EngineConfig("tiny", num_pages=100, page_size=16, max_num_seqs=32)
    engine = engine_for(loaded, config)
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, logprobs=0)
    answers: list[list[int]] = [[] for _ in LENS]
    scores: list[list[float]] = [[] for _ in LENS]
    # The first alone, so that a lone row is decoded as well.
    for members in ((0,), range(1, len(LENS))):
        for idx in members:
            engine.add(Request(idx, tuple(range(5, 5 + LENS[idx])), params))
        while engine.has_work:
            for delta in engine.step().deltas:
                answers[delta.request_id].extend(delta.token_ids)
                scores[delta.request_id].extend(item.logprob for item in delta.logprobs or ())
    engine.close()
    return answers, torch.tensor(scores)
