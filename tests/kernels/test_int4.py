"""Linears with weights of four bits against fp32 twins of what the weights stand for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.paged_batch import DEVICE, DTYPES, HALF

from tokenbus.kernels import reference
from tokenbus.kernels.int4.layout import PackedInt4, group_in_blocks, pack_int4
from tokenbus.kernels.int4.linear import int4_linear, widened_int4
from tokenbus.kernels.int4.matmul import Int4RowsTuning, Int4Tuning
from tokenbus.kernels.int4.split_rows import SplitRows, split_rows
from tokenbus.kernels.int4.table import choose_int4_tuning
from tokenbus.kernels.int4.vector import Int4VectorTuning
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.linear.small_linear import Fusion
from tokenbus.kernels.linear.table import LinearRole

if TYPE_CHECKING:
    from torch import Tensor

pytestmark = pytest.mark.each_value

_TILE = Int4Tuning(16, 64, 4, 2)
_TALL = Int4Tuning(32, 64, 4, 2, blocks=2, splits=2)
_ROWS = Int4RowsTuning(64, 4, 2, blocks=2, splits=3)
_VECTOR, _SMALL = Int4VectorTuning(8, 1, 3), Int4VectorTuning(8, 1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=_generator(seed)).to(DEVICE, dtype)


def _weight(
    num_outputs: int, num_inputs: int, group: int, *, has_order: bool = False
) -> tuple[PackedInt4, Tensor]:
    """Draw a packed weight and the numbers that it stands for."""
    num_groups = -(-num_inputs // group)
    rng = _generator(num_inputs)
    steps = torch.randint(0, 16, (num_outputs, num_inputs), generator=rng, dtype=torch.uint8)
    zeros = torch.randint(0, 17, (num_outputs, num_groups), generator=rng, dtype=torch.uint8)
    scales = (torch.rand(num_outputs, num_groups, generator=rng) * 0.02 + 1e-3).half()
    order = torch.randperm(num_inputs, generator=rng) if has_order else None
    groups = torch.arange(num_inputs) // group
    values = (steps.float() - zeros.float()[:, groups]) * scales.float()[:, groups]
    if order is not None:
        values[:, order] = values.clone()
    nibbles = steps[:, ::2] | steps[:, 1::2] << 4
    packed = pack_int4(
        nibbles.to(DEVICE),
        scales.to(DEVICE),
        zeros.to(DEVICE),
        group,
        None if order is None else order.to(DEVICE),
    )
    return packed, values.to(DEVICE)


def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all memory that a kernel gets hold NaN."""
    empty = torch.empty

    def poisoned(*sizes: Any, **options: Any) -> Tensor:
        tensor = empty(*sizes, **options)
        if tensor.dtype == torch.float8_e4m3fn:
            return tensor.view(torch.uint8).fill_(0x7F).view(tensor.dtype)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


def _rows(num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Draw rows behind which memory holds NaN."""
    memory = torch.full((num_rows + 3, width), float("nan"), device=DEVICE, dtype=dtype)
    memory[:num_rows] = _randn(num_rows, width, dtype=dtype)
    return memory[:num_rows]


@pytest.mark.parametrize(
    ("sizes", "num_rows", "tuning", "fusion", "dtype"),
    [
        # Blocks and groups that fit, that are cut off, that hold a whole row.
        ((96, 512, 128), 1, _ROWS, "norm", HALF),
        ((56, 300, 300), 5, _ROWS, "gate", HALF),
        ((64, 384, 256), 8, Int4RowsTuning(64, 4, 3), "sum", HALF),
        ((72, 256, 128), 13, Int4RowsTuning(128, 4, 3, blocks=2), "bias", HALF),
        ((96, 512, 128), 3, None, "gate", HALF),
        ((88, 512, 128), 1, _VECTOR, "norm", HALF),
        ((56, 300, 300), 1, Int4VectorTuning(16, 2, 2), "gate", HALF),
        ((84, 384, 256), 1, None, "sum", HALF),
        ((40, 200, 32), 1, _TILE, "gate", torch.float32),
        ((50, 144, 64), 16, Int4Tuning(16, 64, 4, 2, splits=2), "sum", HALF),
        ((48, 288, 96), 5, None, "norm", torch.float32),
        ((96, 512, 128), 37, _TALL, "bias", torch.float32),
        ((96, 384, 128), 70, None, "gate", HALF),
        ((40, 200, 64), 300, None, "bias", torch.float32),
    ],
)
def test_products_equal_those_of_the_numbers(
    sizes: tuple[int, int, int],
    num_rows: int,
    tuning: Int4Tuning | Int4RowsTuning | Int4VectorTuning | None,
    fusion: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each layout, with what surrounds it, inputs in an order of their own, memory poisoned."""
    num_outputs, num_inputs, group = sizes
    has_order = fusion != "bias" and (num_rows > 1 or tuning in (_ROWS, _TILE))
    packed, values = _weight(num_outputs, num_inputs, group, has_order=has_order)
    x = _rows(num_rows, num_inputs, dtype)
    fusions: dict[str, dict[str, Any]] = {
        "norm": {"norm_weight": _randn(num_inputs, seed=2, dtype=dtype) + 1},
        "gate": {"act": "silu", "bias": _randn(num_outputs, seed=3, dtype=dtype)},
        "sum": {"residual": _randn(num_rows, num_outputs, seed=4)},
        "bias": {"bias": _randn(num_outputs, seed=3, dtype=dtype)},
    }
    parts = fusions[fusion]
    expected = reference.fused_linear(x, values, **parts)
    _poison(monkeypatch)
    found = int4_linear(x, packed, Fusion(**parts), tuning=tuning)
    assert (found.shape, found.dtype) == (expected.shape, dtype)
    # Split rows keep nine digits, bf16 and what becomes of it eight.
    tolerance = 1e-6 if dtype == torch.float32 else 5e-3 if DEVICE.type == "cuda" else 2e-3
    error = (found.float() - expected).norm() / expected.norm()
    assert error < tolerance
    if "residual" in parts:
        assert (parts["residual"] - expected).norm() < tolerance * expected.norm()


@DTYPES
@pytest.mark.parametrize("sizes", [(40, 200, 32), (56, 300, 300)])
def test_widened_weights_are_the_numbers(sizes: tuple[int, int, int], dtype: torch.dtype) -> None:
    """Every number is written, rounded once from what it stands for."""
    packed, values = _weight(*sizes)
    found = widened_int4(packed, dtype)
    # Scales are rounded to bfloat16 before they meet the steps.
    rtol = 1e-6 if dtype == torch.float32 else 2**-7 if dtype == torch.bfloat16 else 2**-9
    torch.testing.assert_close(found.float(), values, rtol=rtol, atol=1e-7)
    assert packed.nbytes < values.nbytes / 4


@pytest.mark.parametrize("tuning", [_ROWS, _TILE], ids=["split rows", "rows as they are"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_with_nan_spoils_no_other(tuning: Int4Tuning | Int4RowsTuning, poison: float) -> None:
    """A row that is no number any more stays its own trouble, and the others are what they were."""
    packed, _ = _weight(48, 256, 128)
    x = _rows(3, 256, HALF)
    clean = int4_linear(x, packed, tuning=tuning)
    x[1, 5] = poison
    found = int4_linear(x, packed, tuning=tuning)
    assert not bool(found[1].isfinite().any())
    assert found[[0, 2]].equal(clean[[0, 2]])


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_lone_row_that_is_broken_has_no_finite_product(poison: float) -> None:
    """One number of a row is in all of its products, in whichever thread's share it lies."""
    packed, _ = _weight(8, 256, 128)
    x = _rows(1, 256, HALF)
    x[0, 130] = poison
    assert not bool(int4_linear(x, packed, tuning=_SMALL).isfinite().any())


def test_a_lone_row_may_be_of_any_size() -> None:
    """Half precision between the row and its sums costs no range, and little of a mixed row."""
    packed, values = _weight(8, 256, 128)
    x = _randn(1, 256, dtype=torch.bfloat16)
    found = int4_linear(x, packed, tuning=_SMALL, out_dtype=torch.float32)
    for exponent in (-90, 60):
        scaled = int4_linear(x * 2.0**exponent, packed, tuning=_SMALL, out_dtype=torch.float32)
        assert scaled.equal(found * 2.0**exponent)
    x *= torch.logspace(-4, 4, 256, device=DEVICE)
    found = int4_linear(x, packed, tuning=_SMALL, out_dtype=torch.float32)
    expected = x.float() @ values.T
    assert (found - expected).norm() < 1.5e-3 * expected.norm()
    assert not int4_linear(torch.zeros_like(x), packed, tuning=_SMALL).any()


def _restored(rows: SplitRows) -> Tensor:
    """Return what split rows stand for, columns in their own order."""
    places = torch.arange(rows.parts.shape[1], device=DEVICE)
    order = places // 16 * 16 + places % 2 * 8 + places % 16 // 4 * 2 + places % 4 // 2
    parts = rows.parts.float().view(2, rows.height, -1)[:, : rows.num_rows]
    values = torch.empty_like(parts[0])
    values[:, order] = parts.sum(0)
    return values[:, : rows.width] * rows.scales[: rows.num_rows, None] / 512


@pytest.mark.parametrize(("num_rows", "width"), [(1, 64), (3, 1000), (16, 1280)])
def test_split_rows_keep_more_than_bfloat16_of_what_counts(num_rows: int, width: int) -> None:
    """Within 2^-9 of each number, or 2^-18 of the row's largest; sums are those of the parts."""
    x = _randn(num_rows, width) * torch.logspace(-3, 3, num_rows, device=DEVICE)[:, None]
    x[:, 1] *= 100
    rows = split_rows(x)
    top = x.abs().amax(1, keepdim=True)
    allowed = torch.maximum(x.abs() * 2**-8, top * 2**-17)
    assert bool(((_restored(rows) - x).abs() <= allowed).all())
    parts = rows.parts.float().view(2 * rows.height, -1, 128).sum(2) / 512
    live = torch.arange(2 * rows.height, device=DEVICE) % rows.height < num_rows
    torch.testing.assert_close(rows.sums.T[live], parts[live], rtol=1e-5, atol=1e-5)
    weight, order = _randn(width, seed=1), torch.randperm(width, generator=_generator(1)).to(DEVICE)
    normed = split_rows(x, norm_weight=weight, eps=1e-5, order=order)
    expected = reference.rms_norm(x, weight, 1e-5)[:, order]
    torch.testing.assert_close(_restored(normed), expected, rtol=2**-8, atol=2e-4)
    assert not _restored(split_rows(torch.zeros(2, width, device=DEVICE))).any()


def test_groups_are_cut_into_what_a_block_holds() -> None:
    """Groups of any multiple of 32 and whole rows; others have no packed form."""
    found = {group: group_in_blocks(group, 512) for group in (32, 64, 96, 128, 384, 511, 512, 600)}
    assert found == {32: 32, 64: 64, 96: 32, 128: 128, 384: 128, 511: None, 512: 128, 600: 128}
    with pytest.raises(KernelInputError, match="groups of 20 inputs"):
        _weight(16, 100, 20)
    packed, _ = _weight(16, 128, 32)
    for x, reason in ((_randn(2, 100), "100 wide"), (_randn(2, 256)[:, ::2], "contiguous")):
        with pytest.raises(KernelInputError, match=reason):
            int4_linear(x, packed)
    for tuning in (_ROWS, _VECTOR):
        with pytest.raises(KernelInputError, match="summed by 128"):
            int4_linear(_randn(1, 128), packed, tuning=tuning)
    packed, _ = _weight(16, 128, 128, has_order=True)
    for x, reason in ((_randn(2, 128), "a vector is one"), (_randn(1, 128), "an order")):
        with pytest.raises(KernelInputError, match=reason):
            int4_linear(x, packed, tuning=_VECTOR)
    assert int4_linear(_randn(0, 128), packed).shape == (0, 16)


@pytest.mark.parametrize("role", list(LinearRole))
@pytest.mark.parametrize("width_in", [64, 576, 4096, 14336])
def test_the_table_has_a_layout_for_every_shape(role: LinearRole, width_in: int) -> None:
    """No part of a tile is without inputs, and tiles that share them are few enough to count."""
    for width_out in (64, 960, 4096, 14336, 128256):
        for num_rows in (1, 8, 9, 16, 17, 64, 128, 256):
            for splits_rows in (True, False):
                tuning = choose_int4_tuning(
                    num_rows, width_in, width_out, role, splits_rows=splits_rows
                )
                assert tuning is not None
                assert not isinstance(tuning, Int4VectorTuning)
                assert isinstance(tuning, Int4RowsTuning) == (splits_rows and num_rows <= 16)
                assert tuning.splits * tuning.blocks * 128 <= max(width_in, 128 * tuning.blocks)
                assert tuning.splits == 1 or tuning.splits * -(-width_out // 64) <= 4096
        lone = choose_int4_tuning(1, width_in, width_out, role, takes_vector=True)
        assert isinstance(lone, Int4VectorTuning)
        assert lone.block_n % 8 == 0
    assert choose_int4_tuning(257, width_in, 4096, role) is None
    too_wide = choose_int4_tuning(1, 28672, 4096, role, takes_vector=True)
    assert isinstance(too_wide, Int4RowsTuning)
