"""FP8 linears and the rounding of their rows against fp32 twins of what is stored.

Products are compared with those of the stored numbers, so that no error of the rounding hides one
of the product.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from models.paged_batch import DEVICE, HALF, assert_close

from tokenbus.kernels import reference
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.linear.fp8_block_rows import BlockRowsTuning
from tokenbus.kernels.linear.fp8_blocks import BlocksTuning, gate_blocks, takes_gates
from tokenbus.kernels.linear.fp8_linear import fp8_linear, fp8_matvec
from tokenbus.kernels.linear.fp8_matmul import MatmulTuning, multiply_by_library
from tokenbus.kernels.linear.fp8_rows import RowsTuning
from tokenbus.kernels.linear.fp8_shapes import check_fp8_weight
from tokenbus.kernels.linear.fp8_table import (
    choose_matmul_tuning,
    choose_matvec_tuning,
    choose_rows_tuning,
    choose_turns_tuning,
    is_for_library,
)
from tokenbus.kernels.linear.small_linear import Fusion
from tokenbus.kernels.linear.table import LinearRole, LinearTuning
from tokenbus.kernels.quantize import (
    FP8,
    QuantizedRows,
    add_rms_norm_quantized,
    gated_act_quantized,
    quantize_groups,
    quantize_rows,
)

if TYPE_CHECKING:
    from tokenbus.kernels.activation import ActivationKind

pytestmark = pytest.mark.each_value


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw a tensor on the CPU, so that both devices test the same numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def rounded(x: torch.Tensor) -> QuantizedRows:
    """Round in torch: what a kernel is given."""
    scales = x.abs().amax(1).clamp(min=1e-12) / 448
    return QuantizedRows((x / scales[:, None]).to(FP8), scales)


def stored(rows: QuantizedRows) -> torch.Tensor:
    """Return the numbers that rounded rows stand for."""
    return rows.values.float() * rows.scales[:, None]


def assert_rounded(got: QuantizedRows, exact: torch.Tensor) -> None:
    """Each number is the one of e4m3 that lies nearest, and each row uses the whole range."""
    assert got.values.dtype == FP8
    top = exact.abs().amax(1)
    torch.testing.assert_close(got.scales * 448, top, rtol=1e-3, atol=1e-12)
    half_step = torch.maximum(exact.abs() / 16, top[:, None] / 448 / 2**10)
    assert bool(((stored(got) - exact).abs() <= half_step * 1.01).all())


@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (3, 576), (2, 1000)])
def test_rows_are_rounded_to_their_own_scale(tokens: int, width: int) -> None:
    """A row of large numbers leaves the digits of a small one alone; a row of zeros stays zero."""
    x = randn(tokens, width) * torch.logspace(0, 3, tokens, device=DEVICE)[:, None]
    assert_rounded(quantize_rows(x), x)
    nothing = quantize_rows(torch.zeros(2, width, device=DEVICE))
    assert not nothing.values.float().any()
    assert bool((nothing.scales > 0).all())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_with_nan_spoils_no_other(poison: float) -> None:
    """All of a row that is no number any more is NaN, and the rows beside it are what they were."""
    x, weight = randn(3, 96), rounded(randn(48, 96, seed=1))
    clean = fp8_linear(quantize_rows(x), weight.values, weight.scales, out_dtype=torch.float32)
    x[1, 5] = poison
    got = fp8_linear(quantize_rows(x), weight.values, weight.scales, out_dtype=torch.float32)
    assert bool(got[1].isnan().all())
    assert torch.equal(got[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (3, 1000)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_norm_and_rounding_in_one_launch(tokens: int, width: int, with_residual: bool) -> None:
    """The norm is rounded once, from fp32; the sum beside it is exact."""
    x, weight = randn(tokens, width).to(HALF), randn(width, seed=1)
    residual = randn(tokens, width, seed=2) if with_residual else None
    rows, added = add_rms_norm_quantized(x, residual, weight, 1e-6)
    exact = x.float() if residual is None else x.float() + residual
    assert torch.equal(added.float(), exact)
    assert_rounded(rows, reference.rms_norm(exact, weight, 1e-6))


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_gate_and_rounding_in_one_launch(kind: ActivationKind) -> None:
    """Gate and up halves are told apart at odd widths."""
    gate_up = randn(3, 2 * 1037) * 4
    assert_rounded(gated_act_quantized(gate_up, kind), reference.gated_act(gate_up, kind))


SHAPES = pytest.mark.parametrize(("width_in", "width_out"), [(160, 48), (336, 80)])


@SHAPES
@pytest.mark.parametrize(
    "tuning",
    [None, LinearTuning(4, 128, 1), LinearTuning(4, 128, 4, groups=2, ahead=3, by_warp=True)],
    ids=["table", "small", "by warp"],
)
@pytest.mark.parametrize("case", ["plain", "norm, bias", "norm, gate, bias", "residual"])
def test_one_row_equals_twin(
    width_in: int, width_out: int, tuning: LinearTuning | None, case: str
) -> None:
    """One row is not rounded; norm, bias, gate and residual come in their order."""
    factor = 2 if "gate" in case else 1
    weight = rounded(randn(factor * width_out, width_in, seed=1) * 0.1)
    x = randn(1, width_in)
    residual = randn(1, width_out, seed=2) if case == "residual" else None
    fusion = Fusion(
        norm_weight=randn(width_in, seed=3) if "norm" in case else None,
        bias=randn(factor * width_out, seed=4) if "bias" in case else None,
        act="silu" if "gate" in case else None,
        residual=None if residual is None else residual.clone(),
    )
    expected = reference.fused_linear(
        x,
        stored(weight),
        norm_weight=fusion.norm_weight,
        bias=fusion.bias,
        act=fusion.act,
        residual=residual,
    )
    got = fp8_matvec(x, weight.values, weight.scales, fusion, tuning=tuning)
    assert_close(got, expected, torch.float32)
    if fusion.residual is not None:
        assert_close(fusion.residual, expected, torch.float32)


ROWS_TUNINGS: list[RowsTuning | MatmulTuning] = [
    RowsTuning(64, 128, 4, 3, splits=3),
    RowsTuning(64, 64, 4, 2),
    RowsTuning(128, 64, 4, 2),
]
MATMUL_TUNINGS: list[RowsTuning | MatmulTuning] = [
    MatmulTuning(64, 64, 64, 4, 2, group=2),
    MatmulTuning(64, 32, 32, 4, 2, halves=False),
]


@pytest.mark.parametrize("tuning", [*ROWS_TUNINGS, *MATMUL_TUNINGS], ids=repr)
@pytest.mark.parametrize("rows", [1, 17, 70])
@pytest.mark.parametrize("case", ["bias", "gate, bias", "residual"])
def test_rounded_rows_equal_twin(rows: int, tuning: RowsTuning | MatmulTuning, case: str) -> None:
    """Rows, outputs and columns that fill no tile leave no trace, split over programs or not."""
    width_in, width_out = 336, 80
    is_gate = "gate" in case
    if is_gate and getattr(tuning, "splits", 1) > 1:
        pytest.skip("gates are not split")
    weight = rounded(randn((1 + is_gate) * width_out, width_in, seed=1))
    x = rounded(randn(rows, width_in))
    residual = randn(rows, width_out, seed=2) if case == "residual" else None
    fusion = Fusion(
        bias=randn((1 + is_gate) * width_out, seed=4) if "bias" in case else None,
        act="silu" if is_gate else None,
        residual=None if residual is None else residual.clone(),
    )
    expected = reference.fused_linear(
        stored(x), stored(weight), bias=fusion.bias, act=fusion.act, residual=residual
    )
    got = fp8_linear(
        x, weight.values, weight.scales, fusion, out_dtype=torch.float32, tuning=tuning
    )
    assert ((got - expected).norm() / expected.norm()).item() < 1e-3
    if fusion.residual is not None:
        assert ((fusion.residual - expected).norm() / expected.norm()).item() < 1e-3


@pytest.mark.parametrize("width_in", [160, 336])
@pytest.mark.parametrize("block_outputs", [128, 16])
@pytest.mark.parametrize(
    "tuning",
    [None, LinearTuning(4, 128, 4, groups=2, ahead=3, by_warp=True)],
    ids=["table", "by warp"],
)
@pytest.mark.parametrize("is_gate", [False, True], ids=["plain", "gate"])
def test_one_row_equals_twin_by_blocks(
    width_in: int, block_outputs: int, tuning: LinearTuning | None, *, is_gate: bool
) -> None:
    """A lone row is not rounded, and each block has its scale, the cut ones at the edges too."""
    width_out = 80
    num_outputs = (1 + is_gate) * width_out
    values = rounded(randn(num_outputs, width_in, seed=1)).values
    blocks = torch.rand(-(-num_outputs // block_outputs), -(-width_in // 128), device=DEVICE)
    blocks = blocks * 1e-3 + 1e-5
    of_output = blocks.repeat_interleave(block_outputs, 0)[:num_outputs]
    weight = values.float() * of_output.repeat_interleave(128, 1)[:, :width_in]
    fusion = Fusion(
        norm_weight=randn(width_in, seed=3),
        bias=randn(num_outputs, seed=2),
        act="silu" if is_gate else None,
    )
    x = randn(1, width_in)
    got = fp8_matvec(x, values, blocks, fusion, block_outputs=block_outputs, tuning=tuning)
    expected = reference.fused_linear(
        x, weight, norm_weight=fusion.norm_weight, bias=fusion.bias, act=fusion.act
    )
    assert_close(got, expected, torch.float32)


@pytest.mark.parametrize("rows", [1, 20, 130])
@pytest.mark.parametrize("block_outputs", [128, 16])
@pytest.mark.parametrize("is_gate", [False, True], ids=["plain", "gate"])
def test_blocks_of_weights_equal_twin(rows: int, block_outputs: int, is_gate: bool) -> None:
    """Every block of outputs and inputs has its own scale, the cut ones at the edges too."""
    width_in, width_out = 336, 80
    num_outputs = (1 + is_gate) * width_out
    values = rounded(randn(num_outputs, width_in, seed=1)).values
    blocks = torch.rand(-(-num_outputs // block_outputs), 3, device=DEVICE) + 0.01
    of_output = blocks.repeat_interleave(block_outputs, 0)[:num_outputs]
    weight = values.float() * of_output.repeat_interleave(128, 1)[:, :width_in]
    x = quantize_groups(randn(rows, width_in) * torch.logspace(0, 2, width_in, device=DEVICE))
    exact = x.values.float() * x.scales.repeat_interleave(128, 1)[:, :width_in]
    fusion = Fusion(bias=randn(num_outputs, seed=2), act="silu" if is_gate else None)
    expected = reference.fused_linear(exact, weight, bias=fusion.bias, act=fusion.act)
    several = RowsTuning(64, 128, 4, 2, splits=1 if is_gate else 2)
    for tuning in (None, several if rows <= 128 else MatmulTuning(128, 128, 128, 8, 2)):
        got = fp8_linear(
            x, values, blocks, fusion, block_outputs=block_outputs, out_dtype=torch.float32,
            tuning=tuning,
        )  # fmt: skip
        assert ((got - expected).norm() / expected.norm()).item() < 1e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon has no interpreter")
@pytest.mark.parametrize("rows", [1, 130, 700])
@pytest.mark.parametrize(
    "tuning",
    [BlocksTuning(256, 2, 1), BlocksTuning(128, 3, 2), BlocksTuning(128, 5, 8, splits=4)],
    ids=repr,
)
def test_turns_of_warps_over_blocks_equal_twin(rows: int, tuning: BlocksTuning) -> None:
    """Tiles of several turns, cut ones at every edge, and a bias behind."""
    width_in, width_out = 1360, 2000
    values = rounded(randn(width_out, width_in, seed=1)).values
    blocks = torch.rand(16, 11, device=DEVICE) + 0.01
    of_output = blocks.repeat_interleave(128, 0)[:width_out]
    weight = values.float() * of_output.repeat_interleave(128, 1)[:, :width_in]
    x = quantize_groups(randn(rows, width_in) * torch.logspace(0, 2, width_in, device=DEVICE))
    exact = x.values.float() * x.scales.repeat_interleave(128, 1)[:, :width_in]
    fusion = Fusion(bias=randn(width_out, seed=2))
    expected = reference.fused_linear(exact, weight, bias=fusion.bias)
    got = fp8_linear(x, values, blocks, fusion, block_outputs=128, tuning=tuning)
    assert ((got.float() - expected).norm() / expected.norm()).item() < 3e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon has no interpreter")
@pytest.mark.parametrize("rows", [1, 17, 64])
@pytest.mark.parametrize("tuning", [BlockRowsTuning(3), BlockRowsTuning(4, splits=4)], ids=repr)
@pytest.mark.parametrize("case", ["bias", "gate, bias", "residual"])
def test_few_rows_over_blocks_equal_twin(rows: int, tuning: BlockRowsTuning, case: str) -> None:
    """Weights come before rows; cut tiles, a gate and a sum behind; counts are zero again."""
    is_gate = "gate" in case
    if is_gate and tuning.splits > 1:
        pytest.skip("gates are not split")
    width_in, width_out = 1360, 1088 if is_gate else 1104
    num_outputs = (1 + is_gate) * width_out
    values = rounded(randn(num_outputs, width_in, seed=1)).values
    blocks = torch.rand(-(-num_outputs // 128), 11, device=DEVICE) + 0.01
    of_output = blocks.repeat_interleave(128, 0)[:num_outputs]
    weight = values.float() * of_output.repeat_interleave(128, 1)[:, :width_in]
    x = quantize_groups(randn(rows, width_in) * torch.logspace(0, 2, width_in, device=DEVICE))
    exact = x.values.float() * x.scales.repeat_interleave(128, 1)[:, :width_in]
    residual = randn(rows, width_out, seed=3) if case == "residual" else None
    bias = randn(num_outputs, seed=2) if "bias" in case else None
    act: ActivationKind | None = "silu" if is_gate else None
    expected = reference.fused_linear(exact, weight, bias=bias, act=act, residual=residual)
    for _ in range(2):
        added = None if residual is None else residual.clone()
        fusion = Fusion(bias=bias, act=act, residual=added)
        got = fp8_linear(x, values, blocks, fusion, block_outputs=128, tuning=tuning)
        assert ((got.float() - expected).norm() / expected.norm()).item() < 3e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon has no interpreter")
@pytest.mark.parametrize("rows", [1, 130, 700])
@pytest.mark.parametrize("block_outputs", [128, 256])
def test_gates_over_blocks_are_rounded_as_their_twin(rows: int, block_outputs: int) -> None:
    """Tiles of several turns, rows and columns cut; every group has the scale of its numbers."""
    width_in, width_out = 1360, 4 * 128
    values = rounded(randn(2 * width_out, width_in, seed=1)).values
    blocks = torch.rand(2 * width_out // block_outputs, 11, device=DEVICE) + 0.01
    of_output = blocks.repeat_interleave(block_outputs, 0)
    weight = values.float() * of_output.repeat_interleave(128, 1)[:, :width_in]
    x = quantize_groups(randn(rows, width_in) * torch.logspace(-2, 0, width_in, device=DEVICE))
    exact = x.values.float() * x.scales.repeat_interleave(128, 1)[:, :width_in]
    bias = randn(2 * width_out, seed=2)
    expected = reference.fused_linear(exact, weight, bias=bias, act="silu")
    assert takes_gates(x, values, block_outputs) == (rows > 64)
    got = gate_blocks(x, values, blocks, "silu", block_outputs=block_outputs, bias=bias)
    tops = expected.view(rows, 4, 128).abs().amax(-1)
    torch.testing.assert_close(got.scales * 448, tops, rtol=3e-3, atol=1e-3)
    stands_for = got.values.float().view(rows, 4, 128) * got.scales[:, :, None]
    error = (stands_for.view(rows, width_out) - expected).norm() / expected.norm()
    assert error.item() < 0.03


@pytest.mark.parametrize("maker", ["plain", "norm", "gate"])
@pytest.mark.parametrize("width", [48, 336])
def test_groups_of_a_row_have_scales_of_their_own(maker: str, width: int) -> None:
    """Each 128 columns are rounded as a row by themselves would be, the cut ones too."""
    x = randn(3, width) * torch.logspace(0, 3, width, device=DEVICE)
    if maker == "plain":
        got, exact = quantize_groups(x), x
    elif maker == "norm":
        weight = randn(width, seed=1)
        got, _ = add_rms_norm_quantized(x, None, weight, 1e-6, by_groups=True)
        exact = reference.rms_norm(x, weight, 1e-6)
    else:
        gate_up = torch.cat((randn(3, width, seed=2), x), 1)
        got, exact = (
            gated_act_quantized(gate_up, by_groups=True),
            reference.gated_act(gate_up, "silu"),
        )
    assert got.scales.shape == (3, -(-width // 128))
    for group in range(got.scales.shape[1]):
        part = slice(128 * group, min(128 * group + 128, width))
        values = got.values[:, part].contiguous()
        assert_rounded(QuantizedRows(values, got.scales[:, group]), exact[:, part])


def test_splits_are_counted_anew_in_every_launch() -> None:
    """The counts of programs that ended are zero again: the second product is the first."""
    weight, x = rounded(randn(80, 512, seed=1)), rounded(randn(5, 512))
    tuning = RowsTuning(64, 64, 4, 2, splits=4)
    first, second = (
        fp8_linear(x, weight.values, weight.scales, tuning=tuning, out_dtype=torch.float32)
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_no_product_reads_what_is_not_its_own() -> None:
    """Scales and rows beyond the edges are poison, and nothing of it comes through."""
    weight, x = rounded(randn(64, 96, seed=1)), rounded(randn(32, 96))
    poisoned = torch.full((64,), float("nan"), device=DEVICE)
    poisoned[:48] = weight.scales[:48]
    rows = QuantizedRows(x.values[:20].contiguous(), x.scales[:20].contiguous())
    # Rows that fill a tile behind those of a product: 0x7F is NaN.
    room = torch.full((32, 96), 0x7F, dtype=torch.uint8, device=DEVICE).view(FP8)
    room.view(torch.uint8)[:20] = x.values.view(torch.uint8)[:20]
    for tuning in (*ROWS_TUNINGS, *MATMUL_TUNINGS):
        for given in (rows, QuantizedRows(room[:20], rows.scales, room)):
            got = fp8_linear(
                given,
                weight.values[:48].contiguous(),
                poisoned[:48],
                tuning=tuning,
                out_dtype=torch.float32,
            )
            assert not bool(got.isnan().any())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuBLAS runs on a GPU")
@pytest.mark.parametrize("rows", [257, 300, 1001])
@pytest.mark.parametrize("case", ["plain", "bias", "gate, bias", "residual"])
def test_many_rows_equal_twin_by_whichever_product_is_faster(rows: int, case: str) -> None:
    """Odd numbers of rows, narrow and wide, before every tail; NaN behind them comes nowhere."""
    is_gate = "gate" in case
    for width_in, width_out in ((336, 80), (512, 16384 // (1 + is_gate))):
        weight = rounded(randn((1 + is_gate) * width_out, width_in, seed=1))
        x = QuantizedRows.empty(rows, width_in, torch.device(DEVICE))
        assert x.room is not None
        x.room.view(torch.uint8).fill_(0x7F)
        given = rounded(randn(rows, width_in))
        x.values.copy_(given.values)
        x.scales.copy_(given.scales)
        residual = randn(rows, width_out, seed=2) if case == "residual" else None
        bias = randn((1 + is_gate) * width_out, seed=4).to(HALF) if "bias" in case else None
        act: ActivationKind | None = "silu" if is_gate else None
        expected = reference.fused_linear(
            stored(given), stored(weight), bias=bias, act=act, residual=residual
        )
        fusion = Fusion(bias=bias, act=act, residual=residual)
        # The products get memory that was full of NaN.
        del residual
        torch.full((rows, (1 + is_gate) * width_out), float("nan"), dtype=HALF, device=DEVICE)
        got = fp8_linear(x, weight.values, weight.scales, fusion)
        assert ((got.float() - expected).norm() / expected.norm()).item() < 6e-3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="cuBLAS runs on a GPU")
@pytest.mark.parametrize("rows", [17, 257, 1000])
def test_the_library_multiplies_as_the_kernel_does(rows: int) -> None:
    """The same sums, rounded the same way; what lies behind the rows is no part of them."""
    x, weight = quantize_rows(randn(rows, 512)), rounded(randn(6144, 512, seed=1))
    ours = fp8_linear(x, weight.values, weight.scales, tuning=choose_matmul_tuning(rows, 6144))
    got = multiply_by_library(x, weight.values, weight.scales)
    assert got.shape == ours.shape == (rows, 6144)
    assert ((got.float() - ours.float()).norm() / ours.float().norm()).item() < 1e-3


@pytest.mark.parametrize(("rows", "room"), [(1, 16), (17, 32), (160, 256), (257, 384)])
def test_rounded_rows_fill_tiles(rows: int, room: int) -> None:
    """Memory goes on behind the rows up to the height of a tile, and belongs to no row."""
    got = QuantizedRows.empty(rows, 64, DEVICE)
    assert got.values.shape == (rows, 64)
    assert got.room is not None
    assert got.room.shape == (room, 64)
    assert got.room.data_ptr() == got.values.data_ptr()


def test_layouts_suit_the_shape() -> None:
    """Narrow products are split over the chip, those of many rows are left to cuBLAS."""
    assert choose_rows_tuning(17, 14336, 4096, LinearRole.RESIDUAL).splits == 2
    assert choose_rows_tuning(17, 4096, 6144, LinearRole.PLAIN).splits == 1
    few = choose_rows_tuning(8, 14336, 4096, LinearRole.RESIDUAL)
    assert (few.block_k, few.splits) == (512, 1)
    assert choose_rows_tuning(8, 14336, 4096, LinearRole.RESIDUAL, blocks=True).block_k == 128
    narrow, long = ((k, 4096, LinearRole.RESIDUAL) for k in (4096, 14336))
    gate = (4096, 14336, LinearRole.GATED)
    assert choose_turns_tuning(8, *narrow) == BlockRowsTuning(20)
    assert choose_turns_tuning(8, *long) == BlockRowsTuning(16, splits=2)
    assert choose_turns_tuning(64, *gate) == BlockRowsTuning(8)
    # Scales of long columns take the room of steps, at last of all.
    assert choose_turns_tuning(64, 16384, 53248, LinearRole.GATED) == BlockRowsTuning(6)
    longest = choose_turns_tuning(64, 65536, 16384, LinearRole.RESIDUAL)
    assert isinstance(longest, BlockRowsTuning)
    assert longest.stages < 10
    assert isinstance(choose_turns_tuning(64, 65536, 65536, LinearRole.GATED), BlocksTuning)
    turns = [choose_turns_tuning(rows, *long) for rows in (128, 256, 300, 2000)]
    assert [(item.block_m, item.splits) for item in turns if isinstance(item, BlocksTuning)] == [
        (128, 4), (128, 2), (128, 1), (256, 1)
    ]  # fmt: skip
    assert choose_turns_tuning(256, *gate) == BlocksTuning(256, 4, 8)
    assert choose_turns_tuning(512, *gate) == BlocksTuning(128, 5, 8)
    down, longer = (choose_matvec_tuning(k, 4096, LinearRole.RESIDUAL) for k in (14336, 28672))
    assert (down.by_warp, longer.by_warp) == (True, False)
    assert is_for_library(129, 28672, adds_bias=True)
    assert [is_for_library(rows, 4096) for rows in (256, 257, 8192)] == [False, True, True]
    assert not is_for_library(8192, 6144, adds_bias=True)
    dense, wide = choose_matmul_tuning(256, 4096), choose_matmul_tuning(8192, 4096)
    assert (dense.block_m, dense.block_n) == (128, 64)
    assert (wide.block_m, wide.block_n) == (128, 256)


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(50, 160), (48, 152)])
def test_a_weight_that_no_descriptor_describes_is_refused(
    num_outputs: int, num_inputs: int
) -> None:
    """16 has to divide both sizes."""
    weight = rounded(randn(num_outputs, num_inputs))
    with pytest.raises(KernelInputError, match="16 does not divide"):
        check_fp8_weight(weight.values, weight.scales)
