"""Penalties, bias, bad words and min_tokens against transformers and against their definitions."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.types import SamplingParams

VOCAB = 97
EOS = 2
PROMPT = [5, 9, 9, 11, 40]
OUTPUT = [7, 7, 9, 7, 60]


def logits_of(seed: int) -> torch.Tensor:
    """Return one row of logits of both signs."""
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def rules_applied(
    params: SamplingParams, logits: torch.Tensor, position: int | None = None
) -> torch.Tensor:
    """Return the logits of one row after every rule of its parameters."""
    state = SamplingState(1, VOCAB, "cpu", (EOS,))
    state.set_row(0, params, 0, PROMPT, OUTPUT)
    rows = torch.zeros(1, dtype=torch.int64)
    positions = torch.tensor([len(OUTPUT) if position is None else position])
    return state.adjusted_logits(logits, rows, positions, state.plan([0]))


def by_transformers(processor: LogitsProcessor, logits: torch.Tensor) -> torch.Tensor:
    """Run a processor on prompt and output."""
    scores: torch.Tensor = processor(torch.tensor([PROMPT + OUTPUT]), logits.clone())
    return scores


@pytest.mark.parametrize("penalty", [0.5, 1.2, 2.0])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    """Tokens of prompt and output are divided if positive, multiplied if negative, once each."""
    logits = logits_of(0)
    ours = rules_applied(SamplingParams(repetition_penalty=penalty), logits)
    theirs = by_transformers(RepetitionPenaltyLogitsProcessor(penalty), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_presence_and_frequency_penalties_count_the_output_alone() -> None:
    """Presence subtracts once, frequency once per occurrence; a prompt token costs nothing."""
    logits = logits_of(1)
    ours = rules_applied(SamplingParams(presence_penalty=0.7, frequency_penalty=0.3), logits)
    expected = logits.clone()
    for token_id in set(OUTPUT):
        expected[0, token_id] -= 0.7 + 0.3 * OUTPUT.count(token_id)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_logit_bias_equals_transformers() -> None:
    """A bias is added to its token's logit; -inf forbids it."""
    bias = {3: 4.0, 0: -2.5, 96: float("-inf")}
    logits = logits_of(2)
    ours = rules_applied(SamplingParams(logit_bias=bias), logits)
    processor = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    torch.testing.assert_close(ours, by_transformers(processor, logits))


@pytest.mark.parametrize(
    "words",
    [((8,),), ((60, 3),), ((7, 60, 4), (60, 4)), ((1, 60, 5),), ((9, 7, 60, 1), (12,), (50, 12))],
)
def test_bad_words_equal_transformers(words: tuple[tuple[int, ...], ...]) -> None:
    """The last token of a word is masked exactly when the tokens before it were just seen."""
    logits = logits_of(3)
    ours = rules_applied(SamplingParams(bad_words=words), logits)
    processor = NoBadWordsLogitsProcessor([list(word) for word in words], eos_token_id=EOS)
    torch.testing.assert_close(ours, by_transformers(processor, logits))


def test_bad_word_may_begin_in_the_prompt() -> None:
    """The border between prompt and output does not break a word."""
    state = SamplingState(1, VOCAB, "cpu")
    state.set_row(0, SamplingParams(bad_words=((11, 40, 7),)), 0, PROMPT)
    rows, positions = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    adjusted = state.adjusted_logits(logits_of(4), rows, positions, state.plan([0]))
    assert adjusted[0, 7] == float("-inf")


@pytest.mark.parametrize("position", [0, 2, 3, 9])
def test_min_tokens_equals_transformers(position: int) -> None:
    """The end-of-sequence id is masked while the output is shorter than min_tokens."""
    logits = logits_of(5)
    ours = rules_applied(SamplingParams(min_tokens=3), logits, position)
    processor = MinNewTokensLengthLogitsProcessor(4, 3, EOS)
    theirs = processor(torch.zeros(1, 4 + position, dtype=torch.int64), logits.clone())
    torch.testing.assert_close(ours, theirs)


def test_min_tokens_masks_stop_ids_and_spares_an_ignored_eos() -> None:
    """What would end the choice is masked: stop ids always, EOS unless it is ignored."""
    logits = logits_of(6)
    params = SamplingParams(min_tokens=3, stop_token_ids=(10, 0), ignore_eos=True)
    masked = rules_applied(params, logits, 1).isinf()[0]
    assert masked.nonzero().flatten().tolist() == [0, 10]


def test_rules_follow_the_order_of_transformers() -> None:
    """Penalties scale the raw logit, the bias is added to the result."""
    logits = logits_of(7)
    params = SamplingParams(repetition_penalty=1.5, logit_bias={9: 1.0, 7: -1.0})
    theirs = by_transformers(RepetitionPenaltyLogitsProcessor(1.5), logits)
    theirs = by_transformers(SequenceBiasLogitsProcessor([[[9], 1.0], [[7], -1.0]]), theirs)
    torch.testing.assert_close(rules_applied(params, logits), theirs)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(repetition_penalty=1.8, temperature=0.0),
        SamplingParams(presence_penalty=2.0, frequency_penalty=1.0, temperature=0.0),
        SamplingParams(bad_words=((1, 2), (3, 1), (4,)), temperature=0.0),
        SamplingParams(repetition_penalty=1.3, top_k=5, seed=4, bad_words=((1, 2),)),
    ],
    ids=["repetition", "counted", "bad-words", "sampled"],
)
def test_incremental_state_equals_state_rebuilt_from_ids(params: SamplingParams) -> None:
    """After every token, counts and histories equal those of a row set anew: resume is exact."""
    vocab_size = 12
    running = SamplingState(2, vocab_size, "cpu")
    running.set_row(1, params, 0, [1, 2, 3])
    output: list[int] = []
    for step in range(40):
        generator = torch.Generator().manual_seed(step)
        logits = torch.randn(1, vocab_size, generator=generator) * 2
        rebuilt = SamplingState(2, vocab_size, "cpu")
        rebuilt.set_row(0, params, 0, [1, 2, 3], output)
        positions = torch.tensor([step])
        resumed = rebuilt.sample(logits, torch.tensor([0]), positions).token_ids
        token_id = running.sample(logits, torch.tensor([1]), positions).token_ids
        assert token_id.tolist() == resumed.tolist()
        output.append(int(token_id))
    assert len(set(output)) > 3
