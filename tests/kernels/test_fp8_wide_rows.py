"""A few rows as they are times FP8 weights, against the fp32 twin of what is stored."""

from __future__ import annotations

import pytest
import torch
from models.paged_batch import DEVICE, HALF, assert_close

from tokenbus.kernels import reference
from tokenbus.kernels.linear.fp8_rows import RowsTuning
from tokenbus.kernels.linear.fp8_wide_rows import fp8_wide_linear
from tokenbus.kernels.linear.small_linear import Fusion
from tokenbus.kernels.quantize import FP8


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw a tensor on the CPU, so that both devices test the same numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("tuning", [RowsTuning(64, 64, 4, 2), RowsTuning(64, 128, 4, 3, splits=3)])
@pytest.mark.parametrize(("rows", "case"), [(2, "residual"), (7, "bias"), (8, "residual")])
def test_few_rows_as_they_are_equal_twin(rows: int, case: str, tuning: RowsTuning) -> None:
    """Every number of e4m3 is widened exactly, the smallest too, and no row is rounded."""
    width_in, width_out = 336, 80
    matrix = randn(width_out, width_in, seed=1)
    scales = matrix.abs().amax(1) / 448
    values = (matrix / scales[:, None]).to(FP8)
    every = torch.arange(256, dtype=torch.uint8, device=DEVICE)
    every[every & 127 == 127] = 0
    values.view(torch.uint8)[0, :256] = every
    # Below 2^-6 they are what the first output is made of.
    values.view(torch.uint8)[1] = every[:7].repeat(48)
    x = randn(rows, width_in).to(HALF)
    residual = randn(rows, width_out, seed=2) if case == "residual" else None
    fusion = Fusion(
        bias=randn(width_out, seed=4) if case == "bias" else None,
        residual=None if residual is None else residual.clone(),
    )
    expected = reference.fused_linear(
        x, values.float() * scales[:, None], bias=fusion.bias, residual=residual
    )
    got = fp8_wide_linear(x, values, scales, fusion, tuning=tuning)
    assert got.dtype == x.dtype
    sums = fusion.residual
    if sums is None:
        assert_close(got, expected, HALF)
    else:
        assert_close(sums, expected, torch.float32)
        assert torch.equal(got, sums.to(x.dtype))
