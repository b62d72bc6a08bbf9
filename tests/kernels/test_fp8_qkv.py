"""Projection, rotation and page write in one launch, against the launches that do each alone."""

from __future__ import annotations

import pytest
import torch
from models.paged_batch import DEVICE, HALF

from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.linear.fp8_linear import fp8_linear, fp8_matvec
from tokenbus.kernels.linear.fp8_qkv import PageTarget, QkvTuning, fits_qkv, fp8_qkv, fp8_qkv_row
from tokenbus.kernels.linear.small_linear import Fusion
from tokenbus.kernels.qkv_rope import qkv_rope
from tokenbus.kernels.quantize import FP8, quantize_rows

HEADS, KV_HEADS, PAGE_SIZE, PAGES = 2, 1, 16, 3
ROUNDED = pytest.mark.parametrize("is_rounded", [True, False], ids=["fp8", "half"])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw on the CPU, so that both devices test the same numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def target(num_rows: int, dim: int, *, is_rounded: bool) -> PageTarget:
    """Return empty pages, with slots in no order, and rotations of rows."""
    dtype = torch.uint8 if is_rounded else HALF
    k = torch.zeros(PAGES, KV_HEADS, PAGE_SIZE, dim, dtype=dtype, device=DEVICE)
    v = k.transpose(2, 3).contiguous() if is_rounded else k.clone()
    scales = torch.zeros(PAGES, KV_HEADS, PAGE_SIZE, device=DEVICE)
    slots = torch.randperm(PAGES * PAGE_SIZE, generator=torch.Generator().manual_seed(5))
    angles = draw(40, dim // 2, seed=6)
    cos, sin = (torch.cat((part, part), 1) for part in (angles.cos(), angles.sin()))
    return PageTarget(
        HEADS,
        torch.arange(num_rows, device=DEVICE) % 40,
        slots[:num_rows].to(DEVICE),
        cos.contiguous(),
        sin.contiguous(),
        k.view(FP8) if is_rounded else k,
        v.view(FP8) if is_rounded else v,
        scales if is_rounded else None,
        scales.clone() if is_rounded else None,
    )


def weight_of(dim: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight of all heads and the scales of its outputs."""
    values = draw((HEADS + 2 * KV_HEADS) * dim, width, seed=1)
    scales = values.abs().amax(1) / 448
    return (values / scales[:, None]).to(FP8), scales


def in_turn(qkv: torch.Tensor, to: PageTarget) -> torch.Tensor:
    """Rotate and write what was projected, by the launch for all shapes."""
    return qkv_rope(
        qkv, to.k_pages, to.v_pages, to.positions, to.slots, num_heads=HEADS, cos=to.cos,
        sin=to.sin, k_scales=to.k_scales, v_scales=to.v_scales,
    )  # fmt: skip


def assert_same(
    got: torch.Tensor, expected: torch.Tensor, to: PageTarget, twin: PageTarget
) -> None:
    """Queries and what pages stand for agree but for a rounding more, which the twin has.

    Of numbers rounded to half precision first, a few fall to the other of two neighbours in e4m3.
    """
    pairs = [(got, expected)]
    for pages, scales, others, other_scales, is_value in (
        (to.k_pages, to.k_scales, twin.k_pages, twin.k_scales, False),
        (to.v_pages, to.v_scales, twin.v_pages, twin.v_scales, True),
    ):
        if scales is None or other_scales is None:
            pairs.append((pages, others))
            continue
        by = (slice(None), slice(None), None) if is_value else (..., None)
        pairs.append((pages.float() * scales[by], others.float() * other_scales[by]))
    for left, right in pairs:
        assert left.isfinite().all()
        assert (left.float() - right.float()).norm() < 3e-2 * right.float().norm()
        assert bool(((left == 0) == (right == 0)).float().mean() > 0.99)


@ROUNDED
@pytest.mark.parametrize(
    ("num_rows", "dim", "tuning"),
    [
        (2, 64, None),
        (17, 128, QkvTuning(64, 4, 2)),
    ],
    ids=["2-64-split", "17-128"],
)
def test_rows_come_to_their_pages(
    num_rows: int, dim: int, tuning: QkvTuning | None, is_rounded: bool
) -> None:
    """Every head of every row, with a bias, odd widths and rows that do not fill a tile."""
    x, (values, scales) = quantize_rows(draw(num_rows, 96)), weight_of(dim, 96)
    bias = draw(len(values), seed=3)
    to, twin = (target(num_rows, dim, is_rounded=is_rounded) for _ in range(2))
    got = fp8_qkv(x, values, scales, to, bias=bias, dtype=HALF, tuning=tuning)
    expected = in_turn(fp8_linear(x, values, scales, Fusion(bias=bias), out_dtype=HALF), twin)
    assert_same(got, expected, to, twin)


@ROUNDED
def test_more_rows_than_a_tile_come_to_their_pages(
    is_rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row tiles beyond the first have rows, positions and slots of their own."""
    monkeypatch.setattr("tokenbus.kernels.linear.fp8_qkv._MOST_HEIGHT", 16)
    x, (values, scales) = quantize_rows(draw(21, 64)), weight_of(64, 64)
    to, twin = (target(21, 64, is_rounded=is_rounded) for _ in range(2))
    got = fp8_qkv(x, values, scales, to, dtype=HALF, tuning=QkvTuning(64, 4, 2, splits=2))
    assert_same(got, in_turn(fp8_linear(x, values, scales, out_dtype=HALF), twin), to, twin)


@ROUNDED
@pytest.mark.parametrize("has_norm", [True, False], ids=["norm", "plain"])
def test_a_lone_row_comes_to_its_pages(is_rounded: bool, has_norm: bool) -> None:
    """The programs of a head count each other in, twice in a row."""
    x, (values, scales) = draw(1, 96).to(HALF), weight_of(64, 96)
    norm = draw(96, seed=2) if has_norm else None
    bias = draw(len(values), seed=3)
    fusion = Fusion(norm_weight=norm, eps=1e-5, bias=bias)
    for _ in range(2):
        to, twin = (target(1, 64, is_rounded=is_rounded) for _ in range(2))
        got = fp8_qkv_row(x, values, scales, to, bias=bias, norm_weight=norm, eps=1e-5, block_k=128)
        assert_same(got, in_turn(fp8_matvec(x, values, scales, fusion), twin), to, twin)


@pytest.mark.parametrize(
    ("num_rows", "dim", "rotary", "fits"),
    [(1, 128, 128, True), (256, 64, 64, True), (257, 128, 128, False), (8, 96, 96, False),
     (8, 128, 64, False), (8, 256, 256, False)],
)  # fmt: skip
def test_shapes_that_are_fused(num_rows: int, dim: int, rotary: int, fits: bool) -> None:
    """Heads that fill a tile and are rotated whole; others take two launches."""
    assert fits_qkv(num_rows, dim, rotary) is fits


def test_a_weight_of_other_heads_is_refused() -> None:
    """A launch would write heads that the weight does not have."""
    values, scales = weight_of(64, 64)
    with pytest.raises(KernelInputError, match="heads of"):
        fp8_qkv(quantize_rows(draw(2, 64)), values[64:], scales, target(2, 64, is_rounded=True))
