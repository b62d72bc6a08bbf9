"""The kernels of mixtures of experts against their fp32 twins."""

from __future__ import annotations

import math

import pytest
import torch
from models.paged_batch import DEVICE, DTYPES, HALF, assert_close

from tokenbus.kernels import reference as twins
from tokenbus.kernels.experts import reference
from tokenbus.kernels.experts.combine import Beside, NextNorm, combine
from tokenbus.kernels.experts.grouped import experts_down, experts_up
from tokenbus.kernels.experts.lone_row import lone_row_down, lone_row_up
from tokenbus.kernels.experts.router import route_few
from tokenbus.kernels.experts.routing import Routing, choose, route
from tokenbus.kernels.experts.scores import RouterRule
from tokenbus.kernels.experts.table import GroupTuning, RouterTuning, RowTuning, tile_rows_for
from tokenbus.kernels.launch import KernelInputError

pytestmark = pytest.mark.each_value

# Rows, experts, experts per row, hidden size, inner size: one block of rows and several, sizes
# that fill no tile, and rows of odd bytes, which no descriptor fetches.
SHAPES = [(2, 5, 1, 40, 24), (16, 8, 3, 64, 48), (37, 12, 4, 72, 33), (3, 4, 4, 51, 20)]
IDS = [f"T{t}-E{e}-k{k}-H{h}-I{i}" for t, e, k, h, i in SHAPES]
# What make test-full runs besides.
MORE = pytest.mark.slow


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Draw a tensor on the CPU, so that both devices test the same numbers."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng).to(DEVICE, dtype)


def drawn_weights(
    experts: int, width: int, inner: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw gates with what they gate, and what lies behind them, of every expert."""
    gate_up = randn(experts * 2 * inner, width, dtype=dtype, seed=1) / math.sqrt(width)
    return gate_up, randn(experts * width, inner, dtype=dtype, seed=2) / math.sqrt(inner)


def check_list(routing: Routing, num_experts: int) -> None:
    """Every pair is in the list once, under its expert, in tiles of that expert alone."""
    experts = routing.chosen.experts.flatten().tolist()
    order = routing.order.tolist()
    assert sorted(order) == list(range(len(experts)))
    assert order == sorted(order, key=lambda pair: (experts[pair], pair))
    tiles = [tile for tile in routing.tiles.tolist() if tile[2]]
    covered: list[int] = []
    for expert, first, count in tiles:
        assert 1 <= count <= routing.tile_rows
        assert {experts[pair] for pair in order[first : first + count]} == {expert}
        covered += range(first, first + count)
    assert covered == list(range(len(order)))
    full = sum(-(-experts.count(expert) // routing.tile_rows) for expert in range(num_experts))
    assert len(tiles) == full


@pytest.mark.parametrize(
    ("rows", "experts", "top_k", "by_logits"),
    [
        (16, 40, 8, False),
        (75, 8, 8, True),
        pytest.param(1, 3, 2, True, marks=MORE),
        pytest.param(16, 300, 8, True, marks=MORE),
        pytest.param(75, 40, 6, False, marks=MORE),
        pytest.param(1100, 5, 2, False, marks=MORE),
    ],
)
def test_rows_go_where_their_twin_goes(
    rows: int, experts: int, top_k: int, by_logits: bool
) -> None:
    """Experts, weights and the list of work, whether one program has all rows or several."""
    logits = randn(rows, experts + 1) * 3
    rule = RouterRule(experts, top_k, renormalise=rows > 1, by_logits=by_logits)
    watch = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    routing = route(logits, rule, 16, watch=watch)
    expected = reference.route(logits, rule)
    assert torch.equal(routing.chosen.experts.long(), expected.experts)
    assert_close(routing.chosen.weights, expected.weights, torch.float32)
    check_list(routing, experts)
    assert watch.tolist() == [len({*routing.chosen.experts.flatten().tolist()}), 1]


@pytest.mark.parametrize("rows", [5, pytest.param(40, marks=MORE)])
def test_ties_go_to_the_lower_expert(rows: int) -> None:
    """Equal scores are chosen in the order of their experts, as torch.topk does on a GPU."""
    logits = randn(rows, 24).mul(2).round()
    logits[0], logits[1], logits[2] = 0.0, -0.0, 5.0
    logits[2, 3:] = torch.tensor([0.0, -0.0] * 11)[:21]
    for by_logits in (False, True):
        rule = RouterRule(24, 6, by_logits=by_logits)
        routing = route(logits.to(HALF), rule, 16)
        assert torch.equal(routing.chosen.experts.long(), reference.route(logits, rule).experts)
        assert choose(logits[2:3], rule).experts.tolist() == [[0, 1, 2, 3, 4, 5]]
    if DEVICE.type == "cuda":
        theirs = logits.softmax(-1).topk(6).indices
        assert torch.equal(theirs.sort(-1).values, routing.chosen.experts.long().sort(-1).values)


def test_softmax_decides_where_it_cannot_tell_logits_apart() -> None:
    """By softmax, logits too far below the largest are equal; by logits they are not."""
    logits = torch.tensor([[200.0, -1.0, 3.0, 0.0]], device=DEVICE)
    chosen = [choose(logits, RouterRule(4, 2, by_logits=flag)).experts for flag in (False, True)]
    assert [found.tolist() for found in chosen] == [[[0, 1]], [[0, 2]]]


@pytest.mark.parametrize("rows", [pytest.param(4, marks=MORE), 33])
def test_a_broken_row_breaks_no_other(rows: int) -> None:
    """NaN gives experts that exist and weights of NaN, in its row alone."""
    logits = randn(rows, 6)
    logits[1], logits[2, 4] = torch.nan, torch.inf
    routing = route(logits, RouterRule(6, 2), 16)
    check_list(routing, 6)
    assert routing.chosen.experts.min() >= 0
    assert routing.chosen.experts.max() < 6
    broken = routing.chosen.weights.isnan().any(-1).nonzero().flatten().tolist()
    assert broken == [1, 2]


@MORE
def test_uniform_routing_spreads_rows_that_are_almost_alike() -> None:
    """Every expert is chosen about as often, and the same logits go the same way again."""
    logits = (randn(1, 16) + randn(200, 16) * 0.01).to(HALF)
    rule = RouterRule(16, 2, is_uniform=True)
    routing = route(logits, rule, 16)
    assert torch.equal(routing.chosen.experts, route(logits, rule, 16).chosen.experts)
    counts = routing.chosen.experts.flatten().bincount(minlength=16)
    assert int(counts.min()) >= 10
    assert int(counts.max()) <= 50
    assert len({*choose(logits, RouterRule(16, 2)).experts.flatten().tolist()}) < 8


@DTYPES
@pytest.mark.parametrize(
    "shape",
    [pytest.param(shape, marks=MORE) if shape[0] in {2, 37} else shape for shape in SHAPES],
    ids=IDS,
)
def test_grouped_products_equal_their_twin(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    """Each row's experts, weighted and summed, at sizes that fill no tile."""
    rows, experts, top_k, width, inner = shape
    x, logits = randn(rows, width, dtype=dtype), randn(rows, experts, seed=3)
    gate_up, down = drawn_weights(experts, width, inner, dtype)
    rule = RouterRule(experts, top_k)
    routing = route(logits, rule, 16)
    turned = GroupTuning(32, 32, 2, 4, turned=top_k % 2 == 0)
    acted = experts_up(x, gate_up, inner, routing, "silu", tuning=turned)
    got = combine(experts_down(acted, down, width, routing, tuning=turned), routing.chosen.weights)
    expected = reference.mix(x, reference.route(logits, rule), gate_up, down)
    assert got.dtype == dtype
    assert_close(got, expected, dtype)


@pytest.mark.parametrize("rows", [pytest.param(1, marks=MORE), 20, pytest.param(40, marks=MORE)])
def test_all_rows_may_go_to_one_expert(rows: int) -> None:
    """One expert fills several tiles, the others none, and none of their numbers is touched."""
    logits = torch.zeros(rows, 6, device=DEVICE)
    logits[:, 4] = 9.0
    gate_up, down = drawn_weights(6, 48, 32, torch.float32)
    gate_up.view(6, -1)[[0, 1, 2, 3, 5]] = torch.nan
    down.view(6, -1)[[0, 1, 2, 3, 5]] = torch.nan
    x = randn(rows, 48)
    routing = route(logits, RouterRule(6, 1), 16)
    tuning = GroupTuning(16, 32, 2, 4)
    acted = experts_up(x, gate_up, 32, routing, "silu", tuning=tuning)
    got = combine(experts_down(acted, down, 48, routing, tuning=tuning), routing.chosen.weights)
    ups = twins.gated_act(x @ gate_up.view(6, 64, 48)[4].T, "silu")
    assert int((routing.tiles[:, 2] > 0).sum()) == -(-rows // 16)
    assert_close(got, ups @ down.view(6, 48, 32)[4].T, torch.float32)


@pytest.mark.parametrize("turned", [pytest.param(False, marks=MORE), True])
def test_a_broken_row_of_a_tile_leaves_its_neighbours_alone(turned: bool) -> None:
    """NaN in one row, and in the rows of the next expert, stays there."""
    x, logits = randn(6, 32), torch.zeros(6, 2, device=DEVICE)
    logits[:3, 0], logits[3:, 1] = 5.0, 5.0
    x[1], x[4] = torch.nan, torch.inf
    gate_up, down = drawn_weights(2, 32, 24, torch.float32)
    rule, tuning = RouterRule(2, 1), GroupTuning(16, 32, 2, 4, turned=turned)
    routing = route(logits, rule, 16)
    acted = experts_up(x, gate_up, 24, routing, "silu", tuning=tuning)
    got = combine(experts_down(acted, down, 32, routing, tuning=tuning), routing.chosen.weights)
    whole = [0, 2, 3, 5]
    expected = reference.mix(x, reference.route(logits, rule), gate_up, down)
    assert got[[1, 4]].isnan().all()
    assert_close(got[whole], expected[whole], torch.float32)


@DTYPES
def test_what_stands_beside_a_mixture_is_added(dtype: torch.dtype) -> None:
    """The shared expert times its gate, then the residual, which keeps the exact sum."""
    pairs, weights = randn(6, 70, dtype=dtype), randn(3, 2, seed=1)
    shared, logits = randn(3, 70, dtype=dtype, seed=2), randn(3, 5, seed=3)
    residual = randn(3, 70, seed=4)
    mixed = (pairs.view(3, 2, 70).float() * weights[..., None]).sum(1)
    gated = mixed + shared.float() * logits[:, 4:].sigmoid()
    assert_close(combine(pairs, weights, Beside(shared)), mixed + shared.float(), dtype)
    kept = residual.clone()
    got = combine(pairs, weights, Beside(shared, logits[:, 4:], kept))
    assert_close(kept, gated + residual, torch.float32)
    assert torch.equal(got, kept.to(dtype))


@DTYPES
@pytest.mark.parametrize(
    ("width", "inner", "renormalise"),
    [(64, 40, True), pytest.param(51, 33, False, marks=MORE)],
)
def test_a_lone_row_equals_its_twin(
    width: int, inner: int, renormalise: bool, dtype: torch.dtype
) -> None:
    """With what stands beside it."""
    rule = RouterRule(9, 3, renormalise=renormalise)
    x, logits = randn(1, width, dtype=dtype), randn(1, 10, seed=3)
    gate_up, down = drawn_weights(9, width, inner, dtype)
    tuning = RowTuning(4, 32, 2, ahead=2)
    chosen, watch = choose(logits, rule), torch.zeros(2, dtype=torch.int64, device=DEVICE)
    acted = lone_row_up(x, chosen, gate_up, inner, "silu", watch=watch, tuning=tuning)
    assert watch.tolist() == [3, 1]
    shared, residual = randn(1, width, dtype=dtype, seed=6), randn(1, width, seed=7)
    kept = residual.clone()
    beside = Beside(shared, logits[:, 9:], kept)
    got = lone_row_down(acted, chosen, down, width, beside, tuning=tuning)
    expected = reference.mix(x, reference.route(logits, rule), gate_up, down)
    expected += shared.float() * logits[:, 9:].sigmoid() + residual
    assert_close(kept, expected, dtype)
    assert torch.equal(got, kept.to(dtype))


@DTYPES
@pytest.mark.parametrize(
    ("rows", "width", "experts", "top_k", "by_logits", "normed"),
    [
        (1, 72, 9, 3, False, True),
        (5, 72, 40, 8, True, True),
        pytest.param(1, 40, 5, 5, True, False, marks=MORE),
        pytest.param(1, 64, 30, 8, False, True, marks=MORE),
        pytest.param(16, 2100, 12, 4, False, True, marks=MORE),
        pytest.param(2, 51, 70, 2, False, False, marks=MORE),
    ],
)
def test_a_router_of_few_rows_equals_its_twins(
    rows: int, width: int, experts: int, top_k: int, by_logits: bool, normed: bool,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    """Norm, logits with one more behind them, and the choice."""
    rule = RouterRule(experts, top_k, renormalise=rows > 1, by_logits=by_logits)
    x, norm = randn(rows, width, dtype=dtype), randn(width, seed=5).to(dtype)
    router = randn(experts + 1, width, dtype=dtype, seed=6) / math.sqrt(width)
    for tuning in (None, RouterTuning(2, 2)):
        few = route_few(
            x, router, rule, norm_weight=norm if normed else None, eps=1e-5, tuning=tuning
        )
        seen = twins.rms_norm(x, norm, 1e-5) if normed else x
        assert_close(few.rows, seen, dtype)
        assert_close(few.logits, few.rows.float() @ router.float().T, dtype)
        expected = reference.route(few.logits, rule)
        assert torch.equal(few.chosen.experts.long(), expected.experts)
        assert_close(few.chosen.weights, expected.weights, torch.float32)


@pytest.mark.parametrize("by_logits", [False, True])
def test_a_router_of_few_rows_breaks_ties_as_all_do(by_logits: bool) -> None:
    """The lower number of equal ones; NaN stays in its row, and its experts exist."""
    rule = RouterRule(24, 6, by_logits=by_logits)
    wanted = randn(5, 24).mul(2).round()
    wanted[0], wanted[1], wanted[3, 2] = 0.0, -0.0, torch.nan
    router = torch.eye(24, device=DEVICE)
    for rows in (wanted, wanted[:1], wanted[2:3], wanted[3:4]):
        chosen = route_few(rows.contiguous(), router, rule).chosen
        expected = reference.route(rows, rule)
        is_whole = ~rows.isnan().any(-1)
        assert torch.equal(chosen.experts.long()[is_whole], expected.experts[is_whole])
        assert chosen.experts.min() >= 0
        assert chosen.experts.max() < 24
        assert torch.equal(chosen.weights.isnan().any(-1), ~is_whole)


@DTYPES
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[1], pytest.param(SHAPES[3], marks=MORE)])
def test_few_rows_are_multiplied_without_being_sorted(
    shape: tuple[int, int, int, int, int], dtype: torch.dtype
) -> None:
    """A tile has all rows; what its expert is not asked for is neither read nor written."""
    rows, experts, top_k, width, inner = shape
    x, router = randn(rows, width, dtype=dtype), randn(experts, width, dtype=dtype, seed=3)
    gate_up, down = drawn_weights(experts, width, inner, dtype)
    watch = torch.zeros(2, dtype=torch.int64, device=DEVICE)
    few = route_few(x, router, RouterRule(experts, top_k), watch=watch)
    chosen = reference.ChosenTwin(few.chosen.experts.long(), few.chosen.weights)
    unused = sorted(set(range(experts)) - set(chosen.experts.flatten().tolist()))
    gate_up.view(experts, -1)[unused] = torch.nan
    down.view(experts, -1)[unused] = torch.nan
    tuning = GroupTuning(32, 32, 2, 4, turned=top_k % 2 == 0)
    acted = experts_up(x, gate_up, inner, few, "silu", tuning=tuning)
    pairs = experts_down(acted, down, width, few, tuning=tuning)
    assert watch.tolist() == [experts - len(unused), 1]
    expected = reference.mix(x, chosen, gate_up, down)
    assert_close(combine(pairs, few.chosen.weights), expected, dtype)
    norm = randn(width, seed=5).to(dtype)
    got = combine(pairs, few.chosen.weights, norm=NextNorm(norm, 1e-5))
    assert_close(got, twins.rms_norm(expected.to(dtype), norm, 1e-5), dtype)


def test_tiles_grow_with_the_rows_of_an_expert() -> None:
    """Few rows fill no large tile; the list is as long as the worst routing needs."""
    assert [tile_rows_for(pairs, 128) for pairs in (16, 1024, 2048, 8192, 65536)] == [
        16, 16, 32, 64, 128,
    ]  # fmt: skip
    routing = route(torch.zeros(40, 4, device=DEVICE), RouterRule(4, 2), 16)
    assert routing.tiles.shape == (4 + 80 // 16, 3)


def test_wrong_inputs_are_refused() -> None:
    """Shapes that a kernel would read wrongly are named."""
    logits, x = randn(2, 4), randn(2, 8)
    routing = route(logits, RouterRule(4, 2), 16)
    with pytest.raises(KernelInputError, match="5 of 4 experts"):
        route(logits, RouterRule(4, 5), 16)
    with pytest.raises(KernelInputError, match="from 4 logits"):
        route(logits, RouterRule(8, 2), 16)
    with pytest.raises(KernelInputError, match="from 4 logits"):
        route_few(x, randn(4, 8), RouterRule(8, 2))
    with pytest.raises(KernelInputError, match="17 rows"):
        route_few(randn(17, 8), randn(4, 8), RouterRule(4, 2))
    with pytest.raises(KernelInputError, match="no experts of"):
        experts_up(x, randn(30, 8), 4, routing, "silu")
    with pytest.raises(KernelInputError, match="x is 8 wide"):
        experts_down(x, randn(32, 4), 8, routing)
    with pytest.raises(KernelInputError, match="a gate of nothing"):
        combine(randn(4, 8), routing.chosen.weights, Beside(gate_logits=logits[:, :1]))
    with pytest.raises(KernelInputError, match="the experts of 2 rows"):
        lone_row_up(x[:1], routing.chosen, randn(32, 8), 4, "silu")
