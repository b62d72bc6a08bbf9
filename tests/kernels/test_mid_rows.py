"""Gates of 161 to 192 rows in one launch, against the twin, and which of them take it."""

import pytest
import torch
from models.paged_batch import DEVICE, HALF, assert_close

from tokenbus.kernels import reference
from tokenbus.kernels.activation import KINDS, ActivationKind
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.linear.gated_linear import gated_linear
from tokenbus.kernels.linear.hopper import mid_rows as kernel
from tokenbus.kernels.linear.hopper.mid_rows import mid_rows, takes_mid_rows

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon has no interpreter")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw on the CPU, so that every device tests the same numbers."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng).to(DEVICE, HALF)


def takes(rows: int, gates: int, inputs: int = 4096, dtype: torch.dtype = HALF) -> bool:
    """Ask for rows [rows, inputs] and as many gates of another rank or model."""
    x, weight = (
        torch.empty(size, inputs, dtype=dtype, device="meta") for size in (rows, 2 * gates)
    )
    return takes_mid_rows(x, weight)


def test_rows_and_shapes_that_won_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile for most multiprocessors, of rows for which cuBLAS takes more time."""
    monkeypatch.setattr(kernel, "is_hopper", lambda _: True)
    monkeypatch.setattr(kernel, "num_processors", lambda _: 132)
    assert [rows for rows in range(1, 300) if takes(rows, 14336)] == list(range(161, 193))
    # 0.6B, a rank of two of 8B, 8B with 12,288 gates, 14B with more than a tile for each.
    assert not any(takes(192, gates) for gates in (3072, 7168, 12288, 17408))
    assert not takes(192, 14336, inputs=4100)
    assert not takes(192, 14336, dtype=torch.float32)


def test_other_devices_are_not_asked() -> None:
    """Rows go through cuBLAS, or what a device has instead, where the kernel is not at home."""
    assert not takes(192, 14336)


def test_more_rows_are_refused() -> None:
    """There is no room for them."""
    with pytest.raises(KernelInputError, match="193 rows, at most 192"):
        mid_rows(randn(193, 64), randn(16, 64), "silu")


@needs_gpu
@pytest.mark.parametrize("act", KINDS)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(185, 904, 1001), (192, 4096, 14336), (161, 200, 128), (1, 8, 8)],
    ids=["odd", "8B", "few steps", "least"],
)
def test_gates_equal_twin_twice(rows: int, inputs: int, outputs: int, act: ActivationKind) -> None:
    """Rows, columns and outputs that fill no tile leave no trace, nor does what memory held."""
    # Rows behind the last are not the kernel's to read.
    x = torch.full((256, inputs), torch.nan, dtype=HALF, device=DEVICE)
    x[:rows] = randn(rows, inputs)
    weight = randn(2 * outputs, inputs, seed=1) * inputs**-0.5
    expected = reference.fused_linear(x[:rows], weight, act=act)
    results = []
    for _ in range(2):
        # The allocator gives the result this place.
        poison = torch.full((rows, outputs), torch.nan, dtype=HALF, device=DEVICE)
        del poison
        results.append(mid_rows(x[:rows], weight, act))
        assert_close(results[-1], expected, HALF)
    assert torch.equal(*results)


@needs_gpu
@pytest.mark.parametrize("rows", [176, 192])
def test_captured_gates_are_those_of_launches(rows: int) -> None:
    """A graph computes from other rows what launches do."""
    x, weight = randn(rows, 4096), randn(28672, 4096, seed=1) * 4096**-0.5
    place = x.clone()
    gated_linear(place, weight, None, "silu")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = gated_linear(place, weight, None, "silu")
    place.copy_(x.flip(0))
    graph.replay()
    assert torch.equal(out, gated_linear(x.flip(0).contiguous(), weight, None, "silu"))
