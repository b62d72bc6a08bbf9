"""Products of many rows with what follows them in one launch, against launches in turn."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from models.paged_batch import DEVICE, HALF, assert_close

from tokenbus.kernels import reference
from tokenbus.kernels.activation import KINDS, ActivationKind
from tokenbus.kernels.linear.fp8_qkv import PageTarget
from tokenbus.kernels.linear.many_rows import many_rows, takes_many_rows
from tokenbus.kernels.linear.many_rows_qkv import many_rows_qkv
from tokenbus.kernels.qkv_rope import qkv_rope

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon has no interpreter")


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw on the CPU, so that every device tests the same numbers."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng).to(DEVICE, HALF)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of other devices")
def test_other_devices_are_not_asked() -> None:
    """Rows go through cuBLAS, or what a device has instead, where the kernels are not at home."""
    assert not takes_many_rows(randn(4096, 64), randn(16384, 64), 8192)


@needs_gpu
@pytest.mark.parametrize("act", KINDS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1111, 904, 1000), (64, 8, 8)])
def test_many_rows_equal_twin(rows: int, inputs: int, outputs: int, act: ActivationKind) -> None:
    """Rows, columns and outputs that fill no tile leave no trace."""
    x = randn(rows, inputs)
    weight = randn(2 * outputs, inputs, seed=1) * inputs**-0.5
    got = many_rows(x, weight, act)
    assert_close(got, reference.fused_linear(x, weight, act=act), HALF)


@needs_gpu
@pytest.mark.parametrize(
    ("heads", "kv_heads", "page_size"), [(3, 1, 16), (16, 8, 64)], ids=["odd", "even"]
)
def test_rows_in_pages_equal_launches_in_turn(heads: int, kv_heads: int, page_size: int) -> None:
    """Queries, keys and values are those of a product and `qkv_rope`, wherever tokens stand."""
    rows, width = 500, 904
    x, weight = randn(rows, width), randn((heads + 2 * kv_heads) * 128, width, seed=1) * 0.03
    bias = randn(weight.shape[0], seed=2)
    norms = randn(128, seed=3) + 1, randn(128, seed=4) + 1
    angles = randn(2000, 64, seed=5).float()
    cos, sin = (torch.cat((part, part), 1) for part in (angles.cos(), angles.sin()))
    order = torch.Generator().manual_seed(6)
    positions = torch.randperm(2000, generator=order)[:rows].to(DEVICE)
    slots = torch.randperm(39 * page_size, generator=order)[:rows].to(DEVICE) + page_size
    pages = torch.zeros(4, 40, kv_heads, page_size, 128, dtype=HALF, device=DEVICE)
    to = PageTarget(heads, positions, slots, cos, sin, pages[0], pages[1], None, None)
    twin = replace(to, k_pages=pages[2], v_pages=pages[3])
    for (q_norm, k_norm), shift in product((norms, (None, None)), (bias, None)):
        got = many_rows_qkv(x, weight, to, bias=shift, q_norm=q_norm, k_norm=k_norm)
        expected = qkv_rope(
            torch.nn.functional.linear(x, weight), twin.k_pages, twin.v_pages, positions, slots,
            num_heads=heads, cos=cos, sin=sin, bias=shift, q_norm=q_norm, k_norm=k_norm,
        )  # fmt: skip
        assert_close(got, expected.float(), HALF)
        assert_close(to.k_pages, twin.k_pages.float(), HALF)
        assert_close(to.v_pages, twin.v_pages.float(), HALF)
