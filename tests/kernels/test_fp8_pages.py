"""Rounded pages: a scale per token and head, and read like the numbers that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.paged_batch import DEVICE, DTYPES, HALF, PagedBatch, assert_close, make_batch

from tokenbus.kernels import reference
from tokenbus.kernels.attention.paged_decode import QueryRows, paged_decode
from tokenbus.kernels.attention.paged_prefill import paged_prefill
from tokenbus.kernels.attention.prefix_groups import PrefixGroup, PrefixGroups
from tokenbus.kernels.attention.work_list import DecodeWork, SplitPolicy
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.qkv_rope import qkv_rope
from tokenbus.kernels.quantize import FP8

pytestmark = pytest.mark.each_value

HEADS, KV_HEADS, PAGE_SIZE = 6, 2, 16


def rounded_pages(pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return values and scales of pages, and what they stand for.

    What is NaN gets a scale of NaN and the largest values: no byte of such pages is ever NaN.
    """
    exact = pages.float()
    scales = (exact.abs().amax(-1) / 448).contiguous()
    values = torch.nan_to_num(exact / scales[..., None], 448.0).to(FP8)
    return values, scales, values.float() * scales[..., None]


def turned(v: torch.Tensor) -> torch.Tensor:
    """Return values [P, Hkv, S, D] as pages of FP8 hold them, or the other way round."""
    return v.transpose(2, 3).contiguous()


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
        batch.q, k, turned(v), batch.block_table, batch.context_lens, work, scale=0.2,
        k_scales=k_scales, v_scales=v_scales,
    )  # fmt: skip
    expected = reference.paged_decode(
        batch.q, exact_k, exact_v, batch.block_table, batch.context_lens, scale=0.2
    )
    # Queries and weights are split in two numbers of e4m3, whatever they come as.
    assert_close(got, expected, HALF)


@DTYPES
@pytest.mark.parametrize("window", [pytest.param(None, marks=pytest.mark.slow), 20])
def test_queries_of_drafts_read_rounded_pages(window: int | None, dtype: torch.dtype) -> None:
    """Several queries of a sequence see each what is before it, in parts of one page."""
    lens, query_lens = [5, 40, 0, 70], [1, 3, 2, 4]
    batch = batch_of(lens, 32, dtype)
    k, k_scales, exact_k = rounded_pages(batch.k_pages)
    v, v_scales, exact_v = rounded_pages(batch.v_pages)
    q = torch.randn(sum(query_lens), HEADS, 32, generator=torch.Generator().manual_seed(3))
    q = q.to(DEVICE, dtype)
    borders = torch.tensor([0, 1, 4, 6, 10], dtype=torch.int32, device=DEVICE)
    work = DecodeWork(
        max_rows=len(q), max_pages=8, page_size=PAGE_SIZE, num_heads=HEADS, num_kv_heads=KV_HEADS,
        head_dim=32, device=DEVICE, sliding_window=window,
        policy=SplitPolicy(PAGE_SIZE, PAGE_SIZE),
    )  # fmt: skip
    work.build(batch.context_lens, 4)
    got = paged_decode(
        q, k, turned(v), batch.block_table, batch.context_lens, work, scale=0.2,
        k_scales=k_scales, v_scales=v_scales, queries=QueryRows(borders, 4),
    )  # fmt: skip
    expected = reference.paged_prefill(
        q, exact_k, exact_v, batch.block_table, batch.context_lens, borders, scale=0.2,
        sliding_window=window,
    )  # fmt: skip
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
        q, k, turned(v), batch.block_table, batch.context_lens, borders,
        scale=0.2, sliding_window=window, k_scales=k_scales, v_scales=v_scales,
    )  # fmt: skip
    expected = reference.paged_prefill(
        q, exact_k, exact_v, batch.block_table, batch.context_lens, borders, scale=0.2,
        sliding_window=window,
    )  # fmt: skip
    assert_close(got, expected, dtype)


@DTYPES
@pytest.mark.parametrize(
    ("head_dim", "window"), [pytest.param(32, None, marks=pytest.mark.slow), (48, 20)]
)
def test_prompts_read_this_passes_tokens_from_their_rows(
    head_dim: int, window: int | None, dtype: torch.dtype
) -> None:
    """Rows written back by the writer and pages behind them give what the pages alone give."""
    lens, queries = [5, 40, 70], [5, 3, 50]
    batch = batch_of(lens, head_dim, dtype)
    k, k_scales, _ = rounded_pages(batch.k_pages)
    v, v_scales, _ = rounded_pages(batch.v_pages)
    v = turned(v)
    # The last sequence's rows are followed by padding, whose slot is scratch.
    tokens = [
        (row, at)
        for row, (n, c) in enumerate(zip(lens, queries, strict=True))
        for at in range(n - c, n)
    ]
    slots = [
        int(batch.block_table[row, at // PAGE_SIZE]) * PAGE_SIZE + at % PAGE_SIZE
        for row, at in tokens
    ]
    width = (HEADS + 2 * KV_HEADS) * head_dim
    qkv = torch.randn(len(tokens) + 3, width, generator=torch.Generator().manual_seed(3))
    qkv = qkv.to(DEVICE, dtype)
    bias = torch.randn(width, generator=torch.Generator().manual_seed(4)).to(DEVICE, dtype)
    q = qkv_rope(
        qkv, k, v, torch.zeros(len(qkv), dtype=torch.long, device=DEVICE),
        torch.tensor([*slots, 0, 1, 2], device=DEVICE), num_heads=HEADS, cos=None, sin=None,
        bias=bias, k_scales=k_scales, v_scales=v_scales, write_back=True,
    )  # fmt: skip
    borders = torch.tensor([0, 5, 8, 58], dtype=torch.int32, device=DEVICE)
    got = paged_prefill(
        q, k, v, batch.block_table, batch.context_lens, borders, scale=0.2, sliding_window=window,
        k_scales=k_scales, v_scales=v_scales, fresh=qkv,
    )  # fmt: skip
    expected = reference.paged_prefill(
        q, k.float() * k_scales[..., None], turned(v).float() * v_scales[..., None],
        batch.block_table, batch.context_lens, borders, scale=0.2, sliding_window=window,
    )  # fmt: skip
    assert_close(got, expected, dtype)


@DTYPES
@pytest.mark.parametrize("rot_dim", [0, 16, 32], ids=["nope", "partial", "full"])
@pytest.mark.parametrize("write_back", [False, True], ids=["few", "many"])
def test_keys_and_values_are_rounded_to_their_own_scale(
    rot_dim: int, write_back: bool, dtype: torch.dtype
) -> None:
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
    rounded[1] = turned(rounded[1])
    scales = [torch.full(shape[:3], 7.0, device=DEVICE) for _ in range(2)]
    rotation: dict[str, Any] = {"num_heads": HEADS, "cos": cos, "sin": sin}
    expected_q = qkv_rope(qkv, plain[0], plain[1], positions, slots, **rotation)
    rows = qkv.clone()
    q = qkv_rope(
        rows, rounded[0], rounded[1], positions, slots, k_scales=scales[0], v_scales=scales[1],
        write_back=write_back, **rotation,
    )  # fmt: skip
    assert torch.equal(q, expected_q)
    rounded[1] = turned(rounded[1])
    parts = rows.view(3, -1, dim)[:, HEADS:].chunk(2, 1)
    for values, scale, page, part in zip(rounded, scales, plain, parts, strict=True):
        exact = page[slots // PAGE_SIZE, :, slots % PAGE_SIZE].float()
        stored = values.float() * scale[..., None]
        got = stored[slots // PAGE_SIZE, :, slots % PAGE_SIZE]
        top = exact.abs().amax(-1, keepdim=True)
        half_step = torch.maximum(exact.abs() / 16, top / 448 / 2**10)
        # Plain pages of half precision are rounded, these are not.
        slack = 1.01 if dtype == torch.float32 else 1.2
        assert bool(((got - exact).abs() <= half_step * slack).all())
        assert int((scale != 7.0).sum()) == 3 * KV_HEADS
        assert int((stored != 0).any(-1).sum()) == 3 * KV_HEADS
        if write_back:
            assert torch.equal(part, got.to(dtype))
    assert write_back or torch.equal(rows, qkv)


@pytest.mark.parametrize("write_back", [False, True], ids=["few", "many"])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_breaks_a_token_is_in_its_scales_alone(broken: float, write_back: bool) -> None:
    """No byte of a page is NaN, so that a tile may be read beyond the tokens of a sequence."""
    dim = 16
    qkv = torch.ones(2, (HEADS + 2 * KV_HEADS) * dim, device=DEVICE, dtype=HALF)
    qkv[0, HEADS * dim + 3] = broken
    qkv[0, -1] = -broken
    shape = (2, KV_HEADS, PAGE_SIZE, dim)
    k = torch.zeros(shape, device=DEVICE).to(FP8)
    v = turned(torch.zeros(shape, device=DEVICE).to(FP8))
    k_scales, v_scales = (torch.zeros(shape[:3], device=DEVICE) for _ in range(2))
    slots = torch.tensor([PAGE_SIZE, PAGE_SIZE + 1], device=DEVICE)
    qkv_rope(
        qkv, k, v, torch.zeros_like(slots), slots, num_heads=HEADS, cos=None, sin=None,
        k_scales=k_scales, v_scales=v_scales, write_back=write_back,
    )  # fmt: skip
    assert not k.float().isnan().any()
    assert not v.float().isnan().any()
    assert k_scales.isnan().nonzero().tolist() == [[1, 0, 0]]
    assert v_scales.isnan().nonzero().tolist() == [[1, KV_HEADS - 1, 0]]
    if write_back:
        rows = qkv.view(2, -1, dim)[:, HEADS:].isnan().any(-1)
        assert rows.nonzero().tolist() == [[0, 0], [0, 2 * KV_HEADS - 1]]


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
