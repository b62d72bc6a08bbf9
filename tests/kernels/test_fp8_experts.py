"""The kernels of experts in FP8 against their fp32 twins."""

from __future__ import annotations

import math

import pytest
import torch
from models.paged_batch import DEVICE, HALF, assert_close

from tokenbus.kernels import reference as twins
from tokenbus.kernels.experts import reference
from tokenbus.kernels.experts.combine import Beside, combine
from tokenbus.kernels.experts.fp8_grouped import fp8_experts_down, fp8_experts_up
from tokenbus.kernels.experts.fp8_stack import Fp8Stack
from tokenbus.kernels.experts.lone_row import lone_row_down, lone_row_up
from tokenbus.kernels.experts.rounded_norm import add_rms_norm_both
from tokenbus.kernels.experts.router import FewRows, route_few
from tokenbus.kernels.experts.routing import Routing, choose, route
from tokenbus.kernels.experts.scores import RouterRule
from tokenbus.kernels.experts.table import GroupTuning, RowTuning
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.quantize import QuantizedRows, quantize_groups, quantize_rows

pytestmark = pytest.mark.each_value

# What make test-full runs besides.
MORE = pytest.mark.slow


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw a tensor on the CPU, so that both devices test the same numbers."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng).to(DEVICE)


def drawn_stack(rows: int, width: int, block: int, seed: int) -> Fp8Stack:
    """Round a random matrix, with a scale per output or per block."""
    exact = randn(rows, width, seed=seed) / math.sqrt(width)
    if not block:
        tops = exact.abs().amax(1) / 448
        return Fp8Stack((exact / tops[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn), tops)
    scales = torch.rand(-(-rows // block), -(-width // 128), device=DEVICE) / 100 + 0.001
    values = (exact / spread(scales, rows, width, block)).clamp(-448, 448)
    return Fp8Stack(values.to(torch.float8_e4m3fn), scales, block)


def spread(scales: torch.Tensor, rows: int, width: int, block: int) -> torch.Tensor:
    """Repeat the scales of blocks for all numbers."""
    return scales.repeat_interleave(block, 0)[:rows].repeat_interleave(128, 1)[:, :width]


def exact_of(stack: Fp8Stack) -> torch.Tensor:
    """Return what a stack stands for."""
    rows, width = stack.values.shape
    if not stack.block_outputs:
        return stack.values.float() * stack.scales[:, None]
    return stack.values.float() * spread(stack.scales, rows, width, stack.block_outputs)


def exact_rows(rows: QuantizedRows) -> torch.Tensor:
    """Return what rounded rows stand for."""
    scales = rows.scales[:, None] if rows.scales.dim() == 1 else rows.scales
    if rows.scales.dim() == 1:
        return rows.values.float() * scales
    return rows.values.float() * scales.repeat_interleave(128, 1)[:, : rows.values.shape[1]]


@pytest.mark.parametrize("block", [0, 16], ids=["outputs", "blocks"])
@pytest.mark.parametrize(
    ("rows", "experts", "top_k", "width", "inner", "turned"),
    [
        (7, 6, 2, 144, 160, True),
        pytest.param(20, 5, 3, 256, 48, False, marks=MORE),
        pytest.param(16, 4, 4, 48, 144, False, marks=MORE),
        pytest.param(40, 3, 1, 144, 128, True, marks=MORE),
    ],
)
def test_products_equal_their_twin(
    rows: int, experts: int, top_k: int, width: int, inner: int, turned: bool, block: int
) -> None:
    """Gates to the last digit of e4m3, what is behind them to that of the result."""
    gate_up = drawn_stack(experts * 2 * inner, width, block, 1)
    down = drawn_stack(experts * width, inner, block, 2)
    x, router = randn(rows, width).to(HALF), randn(experts, width, seed=3).to(HALF)
    rule = RouterRule(experts, top_k)
    rounded = quantize_groups(x) if block else quantize_rows(x)
    if rows <= 16:
        work: FewRows | Routing = route_few(x, router, rule)
        order = torch.arange(rows * top_k, device=DEVICE)
    else:
        work = listed = route(x @ router.T, rule, 16)
        order = listed.order.long()
    tuning = GroupTuning(128, 128, 2, 4, turned=turned)
    acted = fp8_experts_up(rounded, gate_up, inner, work, "silu", tuning=tuning)
    seen = exact_rows(rounded)
    experts_of = work.chosen.experts.flatten().long()
    gates = exact_of(gate_up).view(experts, 2 * inner, width)[experts_of]
    wide = torch.einsum("poi,pi->po", gates, seen.repeat_interleave(top_k, 0))
    expected = twins.gated_act(wide, "silu")
    # Pair by pair; a number may fall to either neighbour of e4m3, and a GPU's sums keep 13 binary
    # places below their largest addend.
    got = exact_rows(acted)
    step = acted.scales.repeat_interleave(128, 1)[:, :inner]
    wanted = expected[order]
    slack = 1.0 if DEVICE.type == "cuda" else 2**-9
    assert ((got - wanted).abs() <= wanted.abs() * 2**-3.9 + step * slack).all()
    pairs = fp8_experts_down(acted, down, width, work, HALF, tuning=tuning)
    behind = exact_of(down).view(experts, width, inner)[experts_of]
    by_pair = torch.empty_like(got)
    by_pair[order] = got
    assert_close(pairs, torch.einsum("poi,pi->po", behind, by_pair), HALF)


@pytest.mark.parametrize("block", [0, 16], ids=["outputs", "blocks"])
@pytest.mark.parametrize(
    ("width", "inner", "block_k"),
    [(160, 144, 128), pytest.param(80, 272, 256, marks=MORE)],
)
def test_a_lone_row_is_not_rounded(width: int, inner: int, block_k: int, block: int) -> None:
    """Weights are widened, and only they were rounded."""
    gate_up = drawn_stack(9 * 2 * inner, width, block, 1)
    down = drawn_stack(9 * width, inner, block, 2)
    x, logits = randn(1, width).to(HALF), randn(1, 9, seed=3)
    rule, tuning = RouterRule(9, 3), RowTuning(16, block_k, 2, ahead=2)
    chosen = choose(logits, rule)
    acted = lone_row_up(x, chosen, gate_up, inner, "silu", tuning=tuning)
    residual = randn(1, width, seed=7)
    kept = residual.clone()
    got = lone_row_down(acted, chosen, down, width, Beside(residual=kept), tuning=tuning)
    expected = reference.mix(x, reference.route(logits, rule), exact_of(gate_up), exact_of(down))
    assert_close(kept, expected + residual, HALF)
    assert torch.equal(got, kept.to(HALF))


@pytest.mark.parametrize("rows", [6, pytest.param(20, marks=MORE)])
def test_a_broken_row_breaks_no_other(rows: int) -> None:
    """NaN in a row, or in an expert that another row goes to, stays there."""
    width, inner, experts = 64, 32, 3
    gate_up = drawn_stack(experts * 2 * inner, width, 0, 1)
    down = drawn_stack(experts * width, inner, 0, 2)
    gate_up.scales.view(experts, -1)[2] = torch.nan
    x = randn(rows, width).to(HALF)
    x[1] = torch.nan
    logits = torch.zeros(rows, experts, device=DEVICE)
    logits[:, 0], logits[4, 2] = 5.0, 9.0
    if rows <= 16:
        # The choice is made by logits that rows cannot break.
        work: FewRows | Routing = route_few(
            logits.to(HALF), torch.eye(experts, device=DEVICE).to(HALF), RouterRule(experts, 1)
        )
    else:
        work = route(logits, RouterRule(experts, 1), 16)
    acted = fp8_experts_up(quantize_rows(x), gate_up, inner, work, "silu")
    pairs = fp8_experts_down(acted, down, width, work, HALF)
    got = combine(pairs, work.chosen.weights)
    assert got.isnan().all(-1).nonzero().flatten().tolist() == [1, 4]
    assert int(got.isnan().any(-1).sum()) == 2


@pytest.mark.parametrize("rows", [3, pytest.param(16, marks=MORE)])
def test_rows_are_rounded_where_they_are_normed(rows: int) -> None:
    """The router's launch, and the norm of many rows, round as a launch of its own would."""
    x, norm = randn(rows, 144).to(HALF), randn(144, seed=5).to(HALF)
    router = randn(6, 144, seed=3).to(HALF)
    x[0, 5] = torch.nan
    few = route_few(x, router, RouterRule(6, 2), norm_weight=norm, rounds=True)
    residual = randn(rows, 144, seed=8)
    normed, rounded, added = add_rms_norm_both(x, residual, norm, 1e-5)
    assert_close(added[1:], (x + residual)[1:], torch.float32)
    assert_close(normed[1:], twins.rms_norm(x + residual, norm, 1e-5)[1:], HALF)
    for seen, got in ((few.rows, few.rounded), (normed, rounded)):
        assert got is not None
        # What a broken row's numbers are means nothing: its scale is NaN.
        assert got.scales.isnan().tolist() == [row == 0 for row in range(rows)]
        assert_close(got.scales[1:], quantize_rows(seen).scales[1:], torch.float32)
        whole = seen[1:].float()
        step = got.scales[1:, None] * 2**-9
        assert ((exact_rows(got)[1:] - whole).abs() <= whole.abs() * 2**-4 + step).all()


def test_wrong_inputs_are_refused() -> None:
    """Sizes, scales and rows that a kernel would read wrongly are named."""
    x, router = randn(2, 32).to(HALF), randn(4, 32).to(HALF)
    work = route_few(x, router, RouterRule(4, 2))
    rows = quantize_rows(x)
    stack = drawn_stack(4 * 2 * 16, 32, 16, 1)
    with pytest.raises(KernelInputError, match="rows with groups"):
        fp8_experts_up(rows, stack, 16, work, "silu")
    with pytest.raises(KernelInputError, match="no experts of"):
        fp8_experts_up(rows, drawn_stack(80, 32, 0, 1), 24, work, "silu")
    with pytest.raises(KernelInputError, match="16 does not divide"):
        fp8_experts_up(rows, drawn_stack(4 * 2 * 9, 32, 0, 1), 9, work, "silu")
    with pytest.raises(KernelInputError, match="blocks of 32 in 16"):
        fp8_experts_down(rows, drawn_stack(64, 32, 32, 1), 16, work, HALF)
