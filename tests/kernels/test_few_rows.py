"""Products of few rows whose weights go straight into matrix instructions, against the twin."""

from typing import Any

import pytest
import torch
from models.paged_batch import DEVICE, HALF, assert_close

from tokenbus.kernels import reference
from tokenbus.kernels.activation import ActivationKind
from tokenbus.kernels.few_rows import FewRowsLayout, few_rows, takes_few_rows

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon has no interpreter")
LAYOUTS = [FewRowsLayout(1, 8, 64, 2), FewRowsLayout(3, 4, 128, 1)]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw on the CPU, so that every device tests the same numbers."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng).to(DEVICE, HALF)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of other devices")
def test_other_devices_are_not_asked() -> None:
    """Rows go through the kernels of all devices where these are not at home."""
    assert takes_few_rows(randn(4, 4096), 64) is None


@needs_gpu
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    ("act", "has_norm", "add_one"),
    [(None, False, False), (None, True, True), ("silu", True, False), ("gelu_tanh", False, False)],
)
@pytest.mark.parametrize("rows", [7, 16, 32])
def test_few_rows_equal_twin(
    rows: int,
    act: ActivationKind | None,
    has_norm: bool,
    add_one: bool,
    layout: FewRowsLayout,
) -> None:
    """Rows and outputs that fill no tile leave no trace."""
    inputs, outputs = 2048, 1008
    width = outputs * (2 if act else 1)
    x, weight = randn(rows, inputs), randn(width, inputs, seed=1) * inputs**-0.5
    bias, norm = randn(width, seed=2), randn(inputs, seed=3) if has_norm else None
    around = torch.full((rows + 1, outputs), 7.0, dtype=HALF, device=DEVICE)
    asked: dict[str, Any] = {"norm_weight": norm, "norm_add_one": add_one, "bias": bias, "act": act}
    got = few_rows(x, weight, layout, around[:rows], **asked)
    expected = reference.fused_linear(x, weight, **asked)
    assert_close(got, expected, HALF)
    assert (around[rows] == 7).all()


@needs_gpu
def test_residual_is_added_to() -> None:
    """The sum stands in the residual, and its rounded numbers are the result."""
    x, weight = randn(5, 1024), randn(528, 1024, seed=1) / 32
    residual = randn(5, 528, seed=2).float()
    expected = residual + reference.fused_linear(x, weight).float()
    out = torch.empty(5, 528, dtype=HALF, device=DEVICE)
    got = few_rows(x, weight, FewRowsLayout(), out, residual=residual)
    assert_close(residual, expected, HALF)
    assert torch.equal(got, residual.to(HALF))


@needs_gpu
def test_row_does_not_depend_on_the_others() -> None:
    """What a row comes to is the same to the bit, however many rows there are."""
    x, weight = randn(32, 2048), randn(512, 2048, seed=1) / 45
    of_all = [
        few_rows(part, weight, FewRowsLayout(), part.new_empty(len(part), 512))
        for part in (x[:2], x[:8], x[:16], x)
    ]
    for few in of_all[:-1]:
        assert torch.equal(few, of_all[-1][: len(few)])
