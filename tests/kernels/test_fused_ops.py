"""Fused norm, rotary, activation, embedding and small linears against their fp32 twins."""

import pytest
import torch
from models.paged_batch import DEVICE, DTYPES, HALF, assert_close

from tokenbus.kernels import reference
from tokenbus.kernels.activation import ActivationKind, gated_act
from tokenbus.kernels.embedding import embed, widen
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.linear.gated_linear import GatedTuning, choose_gated_tuning, gated_linear
from tokenbus.kernels.linear.small_linear import Fusion, small_linear
from tokenbus.kernels.linear.table import LinearTuning, choose_tuning
from tokenbus.kernels.norm import add_rms_norm, rms_norm
from tokenbus.kernels.qkv_rope import qkv_rope

pytestmark = pytest.mark.each_value


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Draw a tensor on the CPU, so that both devices test the same numbers."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng).to(DEVICE, dtype)


@DTYPES
@pytest.mark.parametrize("add_one", [False, True])
@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (3, 576), (2, 1000)])
def test_add_rms_norm_equals_twin(
    tokens: int, width: int, add_one: bool, dtype: torch.dtype
) -> None:
    """The sum is kept in fp32, whatever x is rounded to, and the norm is taken of it."""
    x, residual = randn(tokens, width, dtype=dtype), randn(tokens, width, seed=1)
    weight = randn(width, seed=2).to(dtype)
    normed, added = add_rms_norm(x, residual, weight, 1e-6, add_one=add_one)
    assert torch.equal(added, x.float() + residual)
    assert normed.dtype == dtype
    assert_close(normed, reference.rms_norm(added, weight, 1e-6, add_one=add_one), dtype)


def test_norm_of_an_exact_sum_is_rounded_to_the_weights_dtype() -> None:
    """The last norm reads fp32 and gives what the head multiplies."""
    x, weight = randn(3, 96), randn(96, seed=1).to(HALF)
    normed = rms_norm(x, weight, 1e-6, dtype=HALF)
    assert normed.dtype == HALF
    assert torch.equal(normed, rms_norm(x, weight, 1e-6).to(HALF))


def test_rms_norm_without_residual_returns_its_input() -> None:
    """Without a residual the second result is x."""
    x = randn(2, 96)
    normed, added = add_rms_norm(x, None, torch.ones(96, device=DEVICE), 1e-5)
    assert added is x
    assert_close(normed, reference.rms_norm(x, torch.ones(96, device=DEVICE), 1e-5), x.dtype)


@DTYPES
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_gated_act_equals_twin(kind: ActivationKind, dtype: torch.dtype) -> None:
    """Gate and up halves are told apart at odd widths, far from zero as well."""
    gate_up = randn(3, 2 * 1037, dtype=dtype) * 8
    assert_close(gated_act(gate_up, kind), reference.gated_act(gate_up, kind), dtype)


@DTYPES
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(
    ("rows", "width_in", "width_out", "bias"), [(17, 104, 80, True), (70, 64, 33, False)]
)
def test_gated_linear_equals_twin(
    rows: int, width_in: int, width_out: int, bias: bool, kind: ActivationKind, dtype: torch.dtype
) -> None:
    """Rows, outputs and columns that fill no tile leave no trace; bias comes before the gate."""
    x = randn(rows, width_in, dtype=dtype)
    weight = randn(2 * width_out, width_in, dtype=dtype, seed=1) * 0.2
    shift = randn(2 * width_out, dtype=dtype, seed=2) if bias else None
    got = gated_linear(x, weight, shift, kind, tuning=GatedTuning(32, 32, 32, 2, 4))
    expected = reference.fused_linear(x, weight, bias=shift, act=kind)
    assert_close(got, expected, dtype)


@pytest.mark.parametrize("rows", [17, 33, 65, 128, 129])
def test_gated_linear_equals_twin_at_every_layout(rows: int) -> None:
    """Whatever layout a number of rows runs in, the values are the same."""
    x, weight = randn(rows, 512, dtype=HALF), randn(2 * 96, 512, dtype=HALF, seed=1) * 0.1
    assert (choose_gated_tuning(rows, weight) is None) == (rows in {17, 129})
    got = gated_linear(x, weight, None, "silu")
    assert_close(got, reference.fused_linear(x, weight, act="silu"), HALF)


def test_embed_gathers_and_scales() -> None:
    """Rows come back in the order of the ids."""
    table, ids = randn(11, 70), torch.tensor([10, 0, 3, 3], device=DEVICE)
    assert torch.equal(embed(ids, table), table[ids])
    assert torch.equal(embed(ids, table, 0.5), table[ids] * 0.5)
    half = table.to(HALF)
    assert torch.equal(widen(half), half.float())


@DTYPES
@pytest.mark.parametrize("rot_dim", [0, 16, 64], ids=["nope", "partial", "full"])
@pytest.mark.parametrize(("normed", "biased"), [(True, False), (False, True)])
def test_qkv_rope_writes_rotated_heads_and_pages(
    rot_dim: int, normed: bool, biased: bool, dtype: torch.dtype
) -> None:
    """Q comes out rotated, K and V land in their slots, no other slot is touched."""
    tokens, num_heads, num_kv_heads, dim, page_size = 3, 6, 2, 64, 16
    width = (num_heads + 2 * num_kv_heads) * dim
    qkv = randn(tokens, width, dtype=dtype)
    bias = randn(width, dtype=dtype, seed=1) if biased else None
    q_norm = randn(dim, dtype=dtype, seed=2) if normed else None
    k_norm = randn(dim, dtype=dtype, seed=3) if normed else None
    angles = torch.outer(torch.arange(50.0), torch.logspace(0, -2, max(rot_dim // 2, 1)))
    angles = torch.cat((angles, angles), -1).to(DEVICE)
    cos, sin = (angles.cos(), angles.sin()) if rot_dim else (None, None)
    positions = torch.tensor([0, 17, 49], device=DEVICE)
    slots = torch.tensor([2 * page_size + 15, 1 * page_size, 3 * page_size + 7], device=DEVICE)
    pages = [torch.full((4, num_kv_heads, page_size, dim), float("nan")) for _ in range(2)]
    k_pages, v_pages = (page.to(DEVICE, dtype) for page in pages)
    q = qkv_rope(
        qkv, k_pages, v_pages, positions, slots, num_heads=num_heads, cos=cos, sin=sin,
        bias=bias, q_norm=q_norm, k_norm=k_norm, eps=1e-6,
    )  # fmt: skip
    heads = (qkv.float() + (0 if bias is None else bias.float())).view(tokens, -1, dim)
    expected_q, expected_k, expected_v = torch.split(
        heads, [num_heads, num_kv_heads, num_kv_heads], 1
    )
    if q_norm is not None and k_norm is not None:
        expected_q = reference.rms_norm(expected_q, q_norm, 1e-6)
        expected_k = reference.rms_norm(expected_k, k_norm, 1e-6)
    if cos is not None and sin is not None:
        expected_q = reference.rotate(expected_q, cos[positions], sin[positions])
        expected_k = reference.rotate(expected_k, cos[positions], sin[positions])
    assert_close(q, expected_q, dtype)
    for stored, expected in ((k_pages, expected_k), (v_pages, expected_v)):
        assert_close(stored[slots // page_size, :, slots % page_size], expected, dtype)
        stored[slots // page_size, :, slots % page_size] = float("nan")
        assert stored.isnan().all()


FUSIONS = ["plain", "bias", "norm", "residual", "silu", "norm+gelu_tanh+bias"]


@DTYPES
@pytest.mark.parametrize("kind", FUSIONS)
@pytest.mark.parametrize(
    ("rows", "width_in", "width_out", "slices", "width"),
    [
        (1, 96, 7, 2, 0),
        (1, 64, 33, 1, 0),
        (5, 80, 37, 1, 0),
        (16, 136, 21, 4, 0),
        (3, 80, 37, 1, 11),
    ],
)
def test_small_linear_equals_twin(
    rows: int,
    width_in: int,
    width_out: int,
    slices: int,
    width: int,
    kind: str,
    dtype: torch.dtype,
) -> None:
    """Every fusion agrees with its parts done one by one, at widths that fill no tile."""
    act: ActivationKind | None = (
        "silu" if "silu" in kind else "gelu_tanh" if "gelu_tanh" in kind else None
    )
    height = width_out * (2 if act else 1)
    x = randn(rows, width_in, dtype=dtype)
    weight = randn(height, width_in, dtype=dtype, seed=1) * width_in**-0.5
    fusion = Fusion(
        norm_weight=randn(width_in, dtype=dtype, seed=2) if "norm" in kind else None,
        bias=randn(height, dtype=dtype, seed=3) if "bias" in kind else None,
        residual=randn(rows, width_out, seed=4) if kind == "residual" else None,
        act=act,
    )
    expected = reference.fused_linear(
        x, weight, norm_weight=fusion.norm_weight, eps=fusion.eps, bias=fusion.bias,
        act=fusion.act, residual=fusion.residual,
    )  # fmt: skip
    out = torch.full((rows, width_out), float("nan"), device=DEVICE, dtype=dtype)
    block_n = 16 if rows > 1 else 2
    tuning = LinearTuning(block_n, 16 * slices, 4, slices=slices, early=width_in, width=width)
    small_linear(x, weight, fusion, out=out, tuning=tuning)
    assert_close(out, expected, dtype)
    if fusion.residual is not None:
        torch.testing.assert_close(fusion.residual, expected, rtol=1e-5, atol=1e-4)
        assert torch.equal(out, fusion.residual.to(dtype))


def test_product_behind_a_norm_of_its_own_agrees() -> None:
    """Where the table gives the norm a launch of its own, the result is the fused one's."""
    x, weight, norm_weight = randn(4, 64), randn(48, 64, seed=1), randn(64, seed=2)
    fusion = Fusion(norm_weight=norm_weight)
    expected = reference.fused_linear(x, weight, norm_weight=norm_weight)
    out = small_linear(x, weight, fusion, tuning=LinearTuning(16, 32, 4, norm_apart=True))
    assert_close(out, expected, torch.float32)
    tuning = choose_tuning(4, 4096, 6144, fusion.role)
    assert tuning is not None
    assert tuning.norm_apart


def test_small_linear_gives_fp32_logits() -> None:
    """The head's logits do not pass through the weights' dtype."""
    x, weight = randn(2, 64, dtype=HALF), randn(50, 64, dtype=HALF, seed=1)
    out = small_linear(x, weight, out_dtype=torch.float32)
    torch.testing.assert_close(out, x.float() @ weight.float().T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", FUSIONS)
def test_shapes_left_to_the_library_agree_as_well(kind: str) -> None:
    """Where the table prefers the library, the fusions are done one by one with the same result."""
    act: ActivationKind | None = "silu" if "silu" in kind else None
    rows, width_in, width_out = 2, 16, 65536
    height = width_out * (2 if act else 1)
    x, weight = randn(rows, width_in), randn(height, width_in, seed=1)
    norm_weight = randn(width_in, seed=2) if "norm" in kind else None
    bias = randn(height, seed=3) if "bias" in kind else None
    residual = randn(rows, width_out, seed=4) if kind == "residual" else None
    fusion = Fusion(norm_weight=norm_weight, bias=bias, residual=residual, act=act)
    assert choose_tuning(rows, width_in, width_out, fusion.role) is None
    expected = reference.fused_linear(
        x, weight, norm_weight=norm_weight, bias=bias, act=act, residual=residual
    )
    assert_close(small_linear(x, weight, fusion), expected, torch.float32)
    if residual is not None:
        assert_close(residual, expected, torch.float32)


def test_rounded_residual_is_refused() -> None:
    """The sum over layers stays exact: there is no kernel that rounds it."""
    fusion = Fusion(residual=randn(2, 8, dtype=HALF))
    with pytest.raises(KernelInputError, match="float32"):
        small_linear(randn(2, 64), randn(8, 64), fusion)


def test_too_many_rows_are_refused() -> None:
    """The small kernels say what they take."""
    with pytest.raises(KernelInputError, match="17 rows"):
        small_linear(randn(17, 64), randn(8, 64))
