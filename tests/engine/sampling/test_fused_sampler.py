"""The sampler by kernels: the rules of transformers, the state of the CPU's, its log-probabilities.

Without a GPU the kernels run in Triton's interpreter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from models.paged_batch import DEVICE, HALF
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from tokenbus.engine.sampling.bitmask import bitmask_width
from tokenbus.engine.sampling.logprobs import raw_logprobs
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.types import SamplingParams
from tokenbus.kernels.draw_outcomes import EMPTY_ROW

EOS = 2
NUM_CHOICES = 4
PROMPT = [5, 9, 9, 11, 40, 4095, 4096, 8_001]


def new_state(vocab_size: int, num_rows: int = 8) -> SamplingState:
    """Return a state that works by kernels."""
    return SamplingState(num_rows, vocab_size, DEVICE, (EOS,), fused=True)


def by_transformers(params: SamplingParams, ids: list[int], logits: torch.Tensor) -> torch.Tensor:
    """Return [V] float32: the logits of one choice after all its rules."""
    scores = logits.float().cpu().unsqueeze(0)
    seen = torch.tensor([ids])
    scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(seen, scores)
    output = torch.tensor(ids[len(PROMPT) :], dtype=torch.int64)
    counts = torch.bincount(output, minlength=scores.shape[1])
    scores = scores - torch.where(counts > 0, params.presence_penalty, 0.0)
    scores = scores - counts * params.frequency_penalty
    biases: Any = [[[token], bias] for token, bias in params.logit_bias.items()]
    rules = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor(biases),
            NoBadWordsLogitsProcessor([list(word) for word in params.bad_words], EOS),
            MinNewTokensLengthLogitsProcessor(len(PROMPT), params.min_tokens, EOS),
        ]
    )
    seen_ids: Any = seen
    return rules(seen_ids, scores).squeeze(0)


# Of an interpreter large vocabularies take minutes.
LARGE = () if DEVICE.type == "cuda" else (pytest.mark.slow,)
SIZES = (32_000, 50_257, 151_936, 256_000)


@pytest.mark.parametrize(
    "vocab_size", [9_001, *(pytest.param(size, marks=LARGE) for size in SIZES)]
)
def test_rules_equal_those_of_transformers_through_a_choice_s_life(vocab_size: int) -> None:
    """Four choices draw, one moves to another row, all move to another engine: always the same.

    Logits are of the model's dtype, as they come from its head, and equal after all rules bit for
    bit, repeated tokens, words that begin in the prompt and both ends of the vocabulary included.
    """
    last = vocab_size - 1
    params = SamplingParams(
        temperature=1.0,
        seed=3,
        repetition_penalty=1.3,
        presence_penalty=0.7,
        frequency_penalty=0.45,
        logit_bias={7: 9.0, 1: -2.5, last: float("-inf"), 4096: 3.25, 5: 30.0, 11: 29.5},
        bad_words=((5, 5), (8_001, 11), (8,), (11, 5, 5), (last - 1,)),
        min_tokens=4,
    )
    state = new_state(vocab_size)
    rows = list(range(NUM_CHOICES))
    outputs: list[list[int]] = [[] for _ in rows]
    for choice in range(NUM_CHOICES):
        state.set_row(rows[choice], params, choice, PROMPT)
    for step in range(6):
        if step == 3:
            state.clear_row(rows[2])
            rows[2] = 6
            state.set_row(rows[2], params, 2, PROMPT, outputs[2])
        if step == 5:
            state = new_state(vocab_size)
            for choice in range(NUM_CHOICES):
                state.set_row(rows[choice], params, choice, PROMPT, outputs[choice])
        source = torch.Generator().manual_seed(step)
        logits = torch.randn(NUM_CHOICES, vocab_size, generator=source) * 3
        logits = logits.to(DEVICE, HALF)
        row_ids = torch.tensor(rows, device=DEVICE)
        positions = torch.full_like(row_ids, step)
        plan = state.plan(rows)
        state.flush()
        adjusted = state.adjusted_logits(logits, row_ids, positions, plan).cpu()
        for choice, output in enumerate(outputs):
            expected = by_transformers(params, [*PROMPT, *output], logits[choice])
            assert torch.equal(adjusted[choice], expected)
        drawn = state.sample(logits, row_ids, positions, plan=plan).token_ids.tolist()
        for output, token_id in zip(outputs, drawn, strict=True):
            output.append(token_id)
    assert any(len(set(output)) < len(output) for output in outputs)


def test_rows_of_one_batch_are_ruled_each_by_its_own() -> None:
    """Plain, greedy and ruled rows under a mask draw what the CPU's sampler draws, step by step."""
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=1),
        SamplingParams(seed=2, top_k=9, frequency_penalty=1.5),
        SamplingParams(seed=3, logit_bias={4999: 8.0}, min_p=0.02),
        SamplingParams(seed=4, bad_words=((7,), (1, 2)), top_p=0.9),
        SamplingParams(seed=5, min_tokens=3, logprobs=2, repetition_penalty=0.8),
    ]
    vocab_size, everyone = 5003, range(len(params))
    states = [SamplingState(8, vocab_size, "cpu", (EOS,)), new_state(vocab_size)]
    for state in states:
        for row in everyone:
            state.set_row(row, params[row], 0, [1, 5, 9])
    for step in range(4):
        source = torch.Generator().manual_seed(step)
        logits = torch.randn(len(params), vocab_size, generator=source) * 3
        bits = torch.randint(
            -(2**31), 2**31, (len(params), bitmask_width(vocab_size) - 1), generator=source
        )
        mask = bits.to(torch.int32) if step % 2 else None
        drawn = []
        for state, device in zip(states, (torch.device("cpu"), DEVICE), strict=True):
            row_ids = torch.arange(len(params), device=device)
            sampled = state.sample(
                logits.to(device),
                row_ids,
                torch.full_like(row_ids, step),
                plan=state.plan(everyone),
                bitmask=None if mask is None else mask.to(device),
            )
            assert sampled.logprobs is not None
            drawn.append((sampled.token_ids.tolist(), sampled.logprobs.ranks.tolist()))
        assert drawn[0] == drawn[1]


def test_row_s_next_owner_inherits_nothing() -> None:
    """Counts, biases and words of the owner before are gone, whatever the tables still hold."""
    state, vocab_size = new_state(5000), 5000
    strict = SamplingParams(
        logit_bias={3: -50.0}, bad_words=((3,),), repetition_penalty=9.0, min_tokens=50
    )
    logits = torch.zeros(1, vocab_size, device=DEVICE)
    logits[:, 3] = 5.0
    row_ids = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    positions = torch.zeros_like(row_ids)
    for params, said in ((strict, [3]), (replace(strict, logit_bias={}, bad_words=()), [1])):
        state.set_row(0, params, 0, said)
        state.flush()
        adjusted = state.adjusted_logits(logits, row_ids, positions, state.plan([0]))[0].cpu()
        assert adjusted[3] == (float("-inf") if said == [3] else 5.0)
        state.clear_row(0)


def test_row_whose_mask_allows_nothing_is_told() -> None:
    """Words past the end of a mask forbid their tokens; a row of none gets no token."""
    state = new_state(5000)
    row_ids = torch.arange(2, device=DEVICE)
    for row in range(2):
        state.set_row(row, SamplingParams(temperature=0.0), 0, [1])
    mask = torch.zeros(2, 10, dtype=torch.int32, device=DEVICE)
    mask[1, 9] = -(2**31)
    logits = torch.randn(2, 5000, device=DEVICE)
    drawn = state.sample(logits, row_ids, row_ids, bitmask=mask).token_ids
    assert drawn.tolist() == [EMPTY_ROW, 319]


@pytest.mark.each_value
@pytest.mark.parametrize("vocab_size", [1, 65, 4096, 9001])
@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_scores_are_those_of_the_raw_distribution(vocab_size: int, num_top: int) -> None:
    """Log-probability, rank and alternatives of any token: the first, the last, the likeliest."""
    source = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(4, vocab_size, generator=source) * 4
    token_ids = torch.tensor([0, vocab_size - 1, int(logits[2].argmax()), vocab_size // 2])
    state = new_state(vocab_size)
    scores = state.score(logits.to(DEVICE), token_ids.to(DEVICE), num_top)
    expected = raw_logprobs(logits, token_ids, num_top)
    torch.testing.assert_close(scores.logprobs.cpu(), expected.logprobs, rtol=1e-5, atol=1e-5)
    assert scores.ranks.tolist() == expected.ranks.tolist()
    assert scores.top_ids.tolist() == expected.top_ids.tolist()
    torch.testing.assert_close(
        scores.top_logprobs.cpu(), expected.top_logprobs, rtol=1e-5, atol=1e-5
    )


def test_alternatives_that_tie_come_by_their_ids() -> None:
    """Equal logits of one group and of several: ids rise, none comes twice."""
    logits = torch.zeros(1, 9000, device=DEVICE)
    logits[0, [8000, 70, 64, 65, 4097]] = 2.0
    scores = new_state(9000).score(logits, torch.tensor([64], device=DEVICE), 8)
    assert scores.top_ids.tolist() == [[64, 65, 70, 4097, 8000, 0, 1, 2]]
    assert scores.ranks.tolist() == [1]
