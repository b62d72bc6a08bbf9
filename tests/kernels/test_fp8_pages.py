"""Rounded pages: a scale per token and head, and read like the numbers that they stand for."""

from __future__ import annotations

import pytest
import torch
from models.paged_batch import DEVICE, HALF, PagedBatch, assert_close, make_batch

from tokenbus.kernels import reference
from tokenbus.kernels.attention.paged_decode import paged_decode
from tokenbus.kernels.attention.paged_prefill import paged_prefill
from tokenbus.kernels.attention.prefix_groups import PrefixGroup, PrefixGroups
from tokenbus.kernels.attention.work_list import DecodeWork
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.qkv_rope import qkv_rope
from tokenbus.kernels.quantize import FP8

HEADS, KV_HEADS, PAGE_SIZE = 6, 2, 16
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=["fp32", "half"])


def rounded_pages(pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return values and scales of pages, NaN where they have NaN, and what they stand for."""
    exact = pages.float()
    scales = (exact.abs().amax(-1) / 448).contiguous()
    values = torch.nan_to_num(exact / scales[..., None], 448.0).to(FP8)
    return values, scales, values.float() * scales[..., None]


def batch_of(lens: list[int], head_dim: int, dtype: torch.dtype, **more: object) -> PagedBatch:
    """Return a batch whose pages are NaN wherever no token is."""
    return make_batch(
        lens,
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_dim=head_dim,
        page_size=PAGE_SIZE,
        dtype=dtype,
        **more,  # type: ignore[arg-type]
    )


@DTYPES
@pytest.mark.parametrize("head_dim", [16, 48])
@pytest.mark.parametrize("is_shared", [False, True], ids=["own", "shared"])
def test_decode_reads_rounded_pages(head_dim: int, is_shared: bool, dtype: torch.dtype) -> None:
    """Lone tokens, page borders and shared runs; what lies beyond a length is poison."""
    lens = [1, 16, 17, 70, 75]
    shared = {(3, 4): (0, 3)} if is_shared else None
    batch = batch_of(lens, head_dim, dtype, shared=shared)
    k, k_scales, exact_k = rounded_pages(batch.k_pages)
    v, v_scales, exact_v = rounded_pages(batch.v_pages)
    groups = None
    if is_shared:
        groups = PrefixGroups(
            max_rows=len(lens), page_size=PAGE_SIZE, num_heads=HEADS, num_kv_heads=KV_HEADS,
            device=DEVICE, num_processors=4, min_saved_tokens=0,
        )  # fmt: skip
        groups.assign((PrefixGroup((3, 4), 0, 3),))
    work = DecodeWork(
        max_rows=len(lens), max_pages=8, page_size=PAGE_SIZE, num_heads=HEADS,
        num_kv_heads=KV_HEADS, head_dim=head_dim, device=DEVICE, groups=groups,
    )  # fmt: skip
    work.build(batch.context_lens)
    got = paged_decode(
        batch.q, k, v.transpose(2, 3).contiguous(), batch.block_table, batch.context_lens, work, scale=0.2,
        k_scales=k_scales, v_scales=v_scales,
    )  # fmt: skip
    expected = reference.paged_decode(
        batch.q, exact_k, exact_v, batch.block_table, batch.context_lens, scale=0.2
    )
    assert_close(got, expected, dtype)


@DTYPES
@pytest.mark.parametrize("window", [None, 20])
def test_prefill_reads_rounded_pages(window: int | None, dtype: torch.dtype) -> None:
    """Chunks behind a cached prefix, whole tiles and cut ones."""
    lens, queries = [5, 40, 70], [5, 3, 70]
    batch = batch_of(lens, 32, dtype)
    k, k_scales, exact_k = rounded_pages(batch.k_pages)
    v, v_scales, exact_v = rounded_pages(batch.v_pages)
    q = torch.randn(sum(queries), HEADS, 32, generator=torch.Generator().manual_seed(3))
    q = q.to(DEVICE, dtype)
    borders = torch.tensor([0, 5, 8, 78], dtype=torch.int32, device=DEVICE)
    got = paged_prefill(
        q, k, v.transpose(2, 3).contiguous(), batch.block_table, batch.context_lens, borders,
        scale=0.2, sliding_window=window, k_scales=k_scales, v_scales=v_scales,
    )  # fmt: skip
    expected = reference.paged_prefill(
        q, exact_k, exact_v, batch.block_table, batch.context_lens, borders, scale=0.2,
        sliding_window=window,
    )  # fmt: skip
    assert_close(got, expected, dtype)


@DTYPES
@pytest.mark.parametrize("rot_dim", [0, 16, 32], ids=["nope", "partial", "full"])
def test_keys_and_values_are_rounded_to_their_own_scale(rot_dim: int, dtype: torch.dtype) -> None:
    """A token and head gets the numbers nearest to those of plain pages; no other is touched."""
    dim = 32
    qkv = torch.randn(3, (HEADS + 2 * KV_HEADS) * dim, generator=torch.Generator().manual_seed(1))
    qkv = qkv.to(DEVICE, dtype)
    angles = torch.outer(torch.arange(50.0), torch.logspace(0, -2, max(rot_dim // 2, 1)))
    angles = torch.cat((angles, angles), -1).to(DEVICE)
    cos, sin = (angles.cos(), angles.sin()) if rot_dim else (None, None)
    positions = torch.tensor([0, 17, 49], device=DEVICE)
    slots = torch.tensor([47, 16, 55], device=DEVICE)
    shape = (4, KV_HEADS, PAGE_SIZE, dim)
    plain = [torch.zeros(shape, device=DEVICE, dtype=dtype) for _ in range(2)]
    rounded = [torch.zeros(shape, device=DEVICE).to(FP8) for _ in range(2)]
    scales = [torch.full(shape[:3], 7.0, device=DEVICE) for _ in range(2)]

    def write(
        pages: list[torch.Tensor], k_scales: torch.Tensor | None, v_scales: torch.Tensor | None
    ) -> torch.Tensor:
        return qkv_rope(
            qkv, pages[0], pages[1], positions, slots, num_heads=HEADS, cos=cos, sin=sin,
            k_scales=k_scales, v_scales=v_scales,
        )  # fmt: skip

    expected_q = write(plain, None, None)
    q = write(rounded, scales[0], scales[1])
    assert torch.equal(q, expected_q)
    for values, scale, page in zip(rounded, scales, plain, strict=True):
        exact = page[slots // PAGE_SIZE, :, slots % PAGE_SIZE].float()
        got = (values.float() * scale[..., None])[slots // PAGE_SIZE, :, slots % PAGE_SIZE]
        top = exact.abs().amax(-1, keepdim=True)
        half_step = torch.maximum(exact.abs() / 16, top / 448 / 2**10)
        # Plain pages of half precision are rounded, these are not.
        slack = 1.01 if dtype == torch.float32 else 1.2
        assert bool(((got - exact).abs() <= half_step * slack).all())
        assert int((scale != 7.0).sum()) == 3 * KV_HEADS


def test_scales_and_rounded_pages_come_together() -> None:
    """Pages of another dtype than q need scales, and scales need rounded pages."""
    batch = batch_of([5], 32, torch.float32)
    values, scales, _ = rounded_pages(batch.k_pages)
    borders = torch.tensor([0, 1], dtype=torch.int32, device=DEVICE)
    tables = batch.block_table, batch.context_lens, borders
    with pytest.raises(KernelInputError, match="pages are"):
        paged_prefill(batch.q, values, values, *tables, scale=1.0)
    with pytest.raises(KernelInputError, match="pages with scales"):
        paged_prefill(
            batch.q, batch.k_pages, batch.v_pages, *tables, scale=1.0,
            k_scales=scales, v_scales=scales,
        )  # fmt: skip
