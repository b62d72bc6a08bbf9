"""Temperature, top-k, top-p and min-p against exact distributions and against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tokenbus.engine.sampling.filters import filtered_weights
from tokenbus.engine.sampling.plan import plan_of
from tokenbus.engine.sampling.row_table import RowTable
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.types import SamplingParams

VOCAB = 60
NUM_DRAWS = 20_000

FILTERS = {
    "temperature": SamplingParams(temperature=0.7),
    "hot": SamplingParams(temperature=1.5),
    "top_k": SamplingParams(top_k=7),
    "top_p": SamplingParams(top_p=0.8),
    "min_p": SamplingParams(min_p=0.1),
    "top_k-top_p": SamplingParams(temperature=1.3, top_k=12, top_p=0.85),
    "all": SamplingParams(temperature=0.9, top_k=20, top_p=0.9, min_p=0.05),
}


def warpers(params: SamplingParams) -> list[LogitsProcessor]:
    """Build the processors that transformers runs for these parameters, in its order."""
    processors: list[LogitsProcessor] = [TemperatureLogitsWarper(params.temperature)]
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p > 0:
        processors.append(MinPLogitsWarper(params.min_p))
    return processors


def exact_distribution(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return what transformers would sample from, [M, V] float32."""
    input_ids = torch.zeros(logits.shape[0], 1, dtype=torch.int64)
    for processor in warpers(params):
        logits = processor(input_ids, logits)
    return torch.softmax(logits, -1)


def filtered(logits: torch.Tensor, all_params: list[SamplingParams]) -> torch.Tensor:
    """Return our normalised weights for rows with their own parameters."""
    table = RowTable(len(all_params), (), torch.device("cpu"))
    plan = plan_of(all_params[0])
    for row, params in enumerate(all_params):
        table.write(row, params, 0)
        plan = plan.union(plan_of(params))
    weights = filtered_weights(logits, table.gather(torch.arange(len(all_params))), plan)
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("params", FILTERS.values(), ids=FILTERS)
def test_draws_follow_the_exact_distribution(params: SamplingParams) -> None:
    """Chi-square over 20,000 draws; a filtered token is never drawn."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, VOCAB, generator=generator) * 2
    probabilities = exact_distribution(logits, params)[0]
    state = SamplingState(1, VOCAB, "cpu")
    state.set_row(0, params, 0, ())
    rows = torch.zeros(NUM_DRAWS, dtype=torch.int64)
    sampled = state.sample(logits.expand(NUM_DRAWS, -1), rows, torch.arange(NUM_DRAWS))
    counts = sampled.token_ids.bincount(minlength=VOCAB).double()
    assert counts[probabilities == 0].sum() == 0
    kept = probabilities > 0
    expected = probabilities[kept].double() * NUM_DRAWS
    statistic = ((counts[kept] - expected) ** 2 / expected).sum() / 2
    freedom = torch.tensor((int(kept.sum()) - 1) / 2, dtype=torch.float64)
    assert float(torch.special.gammaincc(freedom, statistic)) > 1e-3


@pytest.mark.parametrize("params", FILTERS.values(), ids=FILTERS)
@pytest.mark.parametrize("scale", [0.5, 3.0, 12.0])
def test_filters_keep_what_transformers_keeps(params: SamplingParams, scale: float) -> None:
    """The filtered distribution equals that of transformers on the same logits."""
    logits = torch.randn(16, 3001, generator=torch.Generator().manual_seed(2)) * scale
    ours = filtered(logits, [params] * 16)
    theirs = exact_distribution(logits, params)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)
    assert torch.equal(ours > 0, theirs > 0)


def test_filters_of_one_row_do_not_depend_on_the_others() -> None:
    """Rows with different filters in one batch get bit for bit what each gets alone."""
    logits = torch.randn(len(FILTERS), 20_000, generator=torch.Generator().manual_seed(3)) * 2
    together = filtered(logits, list(FILTERS.values()))
    for row, params in enumerate(FILTERS.values()):
        assert torch.equal(together[row], filtered(logits[row : row + 1], [params])[0])


def test_top_p_of_a_flat_distribution_sorts_the_whole_row() -> None:
    """A nucleus wider than any head that is tried first is still exact."""
    logits = torch.randn(2, 30_000, generator=torch.Generator().manual_seed(4)) * 0.1
    params = SamplingParams(top_p=0.9)
    ours = filtered(logits, [params, params])
    assert int((ours[0] > 0).sum()) > 20_000
    # The running sums of transformers are float32 over 30,000 terms: the border moves by a few.
    differing = (ours > 0) != (exact_distribution(logits, params) > 0)
    assert int(differing.sum(-1).max()) <= 30


def test_ties_at_the_border_are_kept_together() -> None:
    """Equal logits share their fate: no sort order decides which of them may be drawn."""
    logits = torch.tensor([[2.0, 1.0, 1.0, 1.0, 0.0, -1.0]])
    top_k = filtered(logits, [SamplingParams(top_k=2)])[0]
    assert (top_k > 0).tolist() == [True, True, True, True, False, False]
    top_p = filtered(logits, [SamplingParams(top_p=0.6)])[0]
    assert (top_p > 0).tolist() == [True, True, True, True, False, False]


def test_a_filter_never_empties_a_row() -> None:
    """The most probable token survives the tightest filters."""
    logits = torch.tensor([[0.0, 5.0, 0.0], [1.0, 1.0, float("-inf")]])
    tight = SamplingParams(temperature=0.01, top_k=1, top_p=1e-6, min_p=1.0)
    kept = filtered(logits, [tight, tight]) > 0
    assert kept.tolist() == [[False, True, False], [True, True, False]]
