"""The uniform of a token and the inversion of a row's distribution."""

from __future__ import annotations

import pytest
import torch

from tokenbus.engine.sampling.random_draw import draw, stream_key, uniform, uniforms


def p_value(observed: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the probability of a chi-square statistic at least this large."""
    statistic = ((observed - expected) ** 2 / expected).sum()
    freedom = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic.double() / 2))


def stream(seed: int, choice: int, length: int) -> torch.Tensor:
    """Return the first uniforms of one choice."""
    key, increment = stream_key(seed, choice)
    keys = torch.full((length,), key)
    return uniforms(keys, torch.full((length,), increment), torch.arange(length))


def test_uniform_of_tensors_equals_the_integer_twin() -> None:
    """Tensor arithmetic on int64 gives the bits that unbounded integers give."""
    for seed, choice in ((0, 0), (1, 0), (0, 1), (2**63, 7), (-5, 3)):
        assert stream(seed, choice, 64).tolist() == [uniform(seed, choice, i) for i in range(64)]


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_uniforms_of_one_stream_fill_the_interval_evenly(seed: int) -> None:
    """Positions of one choice are uniform and neighbours are independent."""
    values = stream(seed, 0, 65536)
    assert 0 <= values.min() < values.max() < 1
    cells = (values * 64).long()
    assert p_value(cells.bincount(minlength=64), torch.full((64,), 1024.0)) > 1e-3
    pairs = (values[0::2] * 16).long() * 16 + (values[1::2] * 16).long()
    assert p_value(pairs.bincount(minlength=256), torch.full((256,), 128.0)) > 1e-3


def test_uniforms_of_neighbouring_seeds_and_choices_are_independent() -> None:
    """The first draws of many seeds, and of many choices of a seed, are uniform too."""
    for draws in (
        [uniform(seed, 0, 0) for seed in range(8192)],
        [uniform(9, choice, 0) for choice in range(8192)],
    ):
        cells = (torch.tensor(draws, dtype=torch.float64) * 64).long()
        assert p_value(cells.bincount(minlength=64), torch.full((64,), 128.0)) > 1e-3


@pytest.mark.parametrize("vocab_size", [1, 5, 255, 256, 257, 1000])
def test_draw_inverts_the_running_sum_in_vocabulary_order(vocab_size: int) -> None:
    """A uniform picks the first token whose running probability exceeds it."""
    generator = torch.Generator().manual_seed(vocab_size)
    weights = torch.rand(512, vocab_size, generator=generator)
    weights[torch.rand(512, vocab_size, generator=generator) < 0.5] = 0.0
    weights[:, vocab_size // 2] += 1.0
    targets = torch.rand(512, generator=generator, dtype=torch.float64)
    running = weights.double().cumsum(-1) / weights.double().sum(-1, keepdim=True)
    expected = (running <= targets.unsqueeze(-1)).sum(-1)
    drawn = draw(weights, targets)
    near_border = (running - targets.unsqueeze(-1)).abs().amin(-1) < 1e-6
    assert near_border.sum() <= 1
    assert torch.equal(drawn[~near_border], expected[~near_border])


def test_draw_never_returns_a_token_of_weight_zero_at_either_end() -> None:
    """Uniforms of 0 and just below 1 stay on tokens with weight."""
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    for vocab_size in (3, 256, 300, 1024):
        for only in {0, 1, vocab_size // 2, vocab_size - 1}:
            weights = torch.zeros(2, vocab_size)
            weights[:, only] = 1e-30
            assert draw(weights, ends).tolist() == [only, only]
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(2, 5000, generator=generator)
    weights[:, :300] = 0.0
    weights[:, 4000:] = 0.0
    first, last = draw(weights, ends).tolist()
    assert (first, last) == (300, 3999)
