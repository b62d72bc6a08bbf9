"""Draws behind drafts: what one by one would be drawn, and nothing else left in the rows' state."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest
import torch
from models.paged_batch import DEVICE

from tokenbus.engine.sampling.bitmask import bitmask_width
from tokenbus.engine.sampling.drafted_draws import DraftedRow, draw_drafted
from tokenbus.engine.sampling.logprobs import raw_logprobs
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tokenbus.engine.sampling.sampler import SampledTokens

VOCAB_SIZE = 333
PROMPT = [5, 9, 9, 11]
SAID = [3, 7]
PLAIN = [
    SamplingParams(temperature=0.0),
    SamplingParams(seed=1),
    SamplingParams(seed=2, top_p=0.8, top_k=20, min_p=0.01),
    SamplingParams(seed=3, logit_bias={4: 3.0}, min_tokens=5, stop_token_ids=(8, 9)),
]
RULED = [
    replace(PLAIN[1], repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=1.0),
    replace(PLAIN[0], frequency_penalty=3.0, logprobs=2),
    replace(PLAIN[2], bad_words=((3,), (7, 12), (1, 2, 3))),
    PLAIN[1],
]


def new_state(asked: list[SamplingParams], *, fused: bool) -> SamplingState:
    """Return a state whose rows have said the same."""
    state = SamplingState(len(asked), VOCAB_SIZE, DEVICE, (2,), fused=fused)
    for row, params in enumerate(asked):
        state.set_row(row, params, 0, PROMPT, SAID)
    return state


def one_by_one(
    state: SamplingState, row: int, logits: torch.Tensor, masks: torch.Tensor
) -> list[int]:
    """Draw a token of a row at each place, whatever was drawn before."""
    tokens = []
    for place, of_place in enumerate(logits):
        sampled = state.sample(
            of_place.unsqueeze(0),
            torch.tensor([row], device=DEVICE),
            torch.tensor([len(SAID) + place], device=DEVICE),
            plan=state.plan([row]),
            bitmask=masks[place].unsqueeze(0),
        )
        tokens.append(int(sampled.token_ids))
    return tokens


# The interpreter takes seconds for each draw.
@pytest.mark.parametrize(
    "fused",
    [False, pytest.param(True, marks=() if DEVICE.type == "cuda" else pytest.mark.slow)],
    ids=["torch", "kernels"],
)
@pytest.mark.parametrize("asked", [PLAIN, RULED], ids=["at-once", "in-turn"])
def test_draws_behind_drafts_are_those_of_one_by_one(
    asked: list[SamplingParams], fused: bool
) -> None:
    """Drafts right up to any place: tokens, log-probabilities and the rows' state are the same."""
    chance, generator = Random(7), torch.Generator().manual_seed(1)
    counts = [3, 6, 1, 4]
    logits = [4 * torch.randn(num, VOCAB_SIZE, generator=generator) for num in counts]
    width = bitmask_width(VOCAB_SIZE)
    masks = [torch.full((num, width), -1, dtype=torch.int32) for num in counts]
    for mask in masks:
        mask[::2, 1] = 0
    logits = [each.to(DEVICE) for each in logits]
    masks = [each.to(DEVICE) for each in masks]
    texts = [
        one_by_one(new_state(asked, fused=fused), row, logits[row], masks[row])
        for row in range(len(asked))
    ]
    for num_right in (0, 1, 2, 9):
        drafted, kept = [], []
        for row, text in enumerate(texts):
            draft = text[:-1]
            if num_right < len(draft):
                draft[num_right] = chance.choice([t for t in range(9) if t != draft[num_right]])
            drafted.append(DraftedRow(row, len(SAID), draft))
            kept.append(text[: min(num_right, len(draft)) + 1])
        state = new_state(asked, fused=fused)
        plan = state.plan(range(len(asked)))
        at = torch.cat(logits)
        drawn = draw_drafted(state, at, drafted, plan, _sent, torch.cat(masks))
        places = torch.split(drawn.sampled.token_ids, counts)
        assert [p[: len(k)].tolist() for p, k in zip(places, kept, strict=True)] == kept
        assert drawn.newest().tolist() == [tokens[-1] for tokens in kept]
        _check_scores(drawn.sampled, at)
        _check_state(state, asked, kept, fused=fused)


def _sent(indices: NDArray[np.int64]) -> torch.Tensor:
    return torch.from_numpy(indices).to(DEVICE)


def _check_scores(sampled: SampledTokens, logits: torch.Tensor) -> None:
    """Compare log-probabilities, where they were asked for, with those of the raw distribution."""
    scores = sampled.logprobs
    if scores is not None:
        wanted = raw_logprobs(logits, sampled.token_ids, 2)
        torch.testing.assert_close(scores.logprobs, wanted.logprobs)
        assert scores.ranks.tolist() == wanted.ranks.tolist()


def _check_state(
    state: SamplingState, asked: list[SamplingParams], kept: list[list[int]], *, fused: bool
) -> None:
    """Find in the rows what they would hold if the tokens kept had been said one by one."""
    fresh = SamplingState(len(asked), VOCAB_SIZE, DEVICE, (2,), fused=fused)
    for row, params in enumerate(asked):
        fresh.set_row(row, params, 0, PROMPT, [*SAID, *kept[row]])
    rows = torch.arange(len(asked), device=DEVICE)
    logits = torch.linspace(-3, 3, VOCAB_SIZE, device=DEVICE).repeat(len(asked), 1)
    plan = state.plan(range(len(asked)))
    found = state.adjusted_logits(logits, rows, rows + 4, plan).clone()
    fresh.flush()
    wanted = fresh.adjusted_logits(logits, rows, rows + 4, plan)
    assert found.tolist() == wanted.tolist()
