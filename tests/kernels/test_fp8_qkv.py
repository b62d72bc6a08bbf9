"""A lone row projected, rotated and written in one launch, against those that do each alone."""

from __future__ import annotations

import pytest
import torch
from models.paged_batch import DEVICE, HALF

from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.linear.fp8_linear import fp8_matvec
from tokenbus.kernels.linear.fp8_qkv import PageTarget, fits_qkv_row, fp8_qkv_row
from tokenbus.kernels.linear.small_linear import Fusion
from tokenbus.kernels.qkv_rope import qkv_rope
from tokenbus.kernels.quantize import FP8

HEADS, KV_HEADS, PAGE_SIZE, PAGES = 2, 1, 16, 3
ROUNDED = pytest.mark.parametrize("is_rounded", [True, False], ids=["fp8", "half"])


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw on the CPU, so that both devices test the same numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def target(dim: int, *, is_rounded: bool) -> PageTarget:
    """Return empty pages and a slot in the second of them."""
    dtype = torch.uint8 if is_rounded else HALF
    k = torch.zeros(PAGES, KV_HEADS, PAGE_SIZE, dim, dtype=dtype, device=DEVICE)
    v = k.transpose(2, 3).contiguous() if is_rounded else k.clone()
    scales = torch.zeros(PAGES, KV_HEADS, PAGE_SIZE, device=DEVICE)
    angles = draw(40, dim // 2, seed=6)
    cos, sin = (torch.cat((part, part), 1) for part in (angles.cos(), angles.sin()))
    return PageTarget(
        HEADS,
        torch.tensor([7], device=DEVICE),
        torch.tensor([PAGE_SIZE + 3], device=DEVICE),
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
    ("dim", "has_norm", "has_bias", "block_k"),
    [
        pytest.param(64, True, False, 64, id="norm", marks=pytest.mark.slow),
        pytest.param(64, False, True, 128, id="bias", marks=pytest.mark.slow),
        pytest.param(16, True, True, 4096, id="small heads"),
    ],
)
def test_a_lone_row_comes_to_its_pages(
    dim: int, has_norm: bool, has_bias: bool, block_k: int, is_rounded: bool
) -> None:
    """The programs of a head count each other in, twice in a row; widths fill no step."""
    x, (values, scales) = draw(1, 96).to(HALF), weight_of(dim, 96)
    norm = draw(96, seed=2) if has_norm else None
    bias = draw(len(values), seed=3) if has_bias else None
    fusion = Fusion(norm_weight=norm, eps=1e-5, bias=bias)
    for _ in range(2):
        to, twin = (target(dim, is_rounded=is_rounded) for _ in range(2))
        got = fp8_qkv_row(
            x, values, scales, to, bias=bias, norm_weight=norm, eps=1e-5, block_k=block_k
        )
        assert_same(got, in_turn(fp8_matvec(x, values, scales, fusion), twin), to, twin)


def test_blocks_of_a_weight_have_their_scales() -> None:
    """A head lies within a block of outputs; columns of a row meet the scales of theirs."""
    x, (values, _) = draw(1, 160).to(HALF), weight_of(16, 160)
    blocks = draw(2, 2, seed=4).abs() * 1e-2 + 1e-3
    norm = draw(160, seed=2)
    to, twin = (target(16, is_rounded=True) for _ in range(2))
    got = fp8_qkv_row(x, values, blocks, to, norm_weight=norm, block_outputs=32, block_k=128)
    fusion = Fusion(norm_weight=norm)
    projected = fp8_matvec(x, values, blocks, fusion, block_outputs=32)
    assert_same(got, in_turn(projected, twin), to, twin)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_breaks_a_lone_row_is_in_its_scales_alone(broken: float) -> None:
    """No byte of a page is NaN, so that a tile may be read beyond the tokens of a sequence."""
    x, (values, scales) = draw(1, 64).to(HALF), weight_of(16, 64)
    x[0, 5] = broken
    to = target(16, is_rounded=True)
    fp8_qkv_row(x, values, scales, to)
    assert not to.k_pages.float().isnan().any()
    assert not to.v_pages.float().isnan().any()
    for page_scales in (to.k_scales, to.v_scales):
        assert page_scales is not None
        assert page_scales.isnan().nonzero().tolist() == [[1, 0, 3]]


@pytest.mark.parametrize(
    ("dim", "rotary", "fits"),
    [(128, 128, True), (16, 16, True), (96, 96, False), (128, 64, False), (64, 0, False)],
)
def test_heads_that_are_fused(dim: int, rotary: int, fits: bool) -> None:
    """Heads that are rotated whole; others take two launches."""
    assert fits_qkv_row(dim, rotary) is fits


def test_a_weight_of_other_heads_is_refused() -> None:
    """A launch would write heads that the weight does not have."""
    values, scales = weight_of(64, 64)
    with pytest.raises(KernelInputError, match="heads of"):
        fp8_qkv_row(draw(1, 64), values[64:], scales, target(64, is_rounded=True))


def test_several_rows_are_refused() -> None:
    """One position and one slot are all that is read."""
    with pytest.raises(KernelInputError, match="this takes one"):
        fp8_qkv_row(draw(2, 64), *weight_of(64, 64), target(64, is_rounded=True))
