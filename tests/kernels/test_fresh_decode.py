"""Decode attention that rotates and writes the current tokens itself, against a launch for that."""

import pytest
import torch
from models.paged_batch import DEVICE, DTYPES, HALF, PagedBatch, assert_close, make_batch

from tokenbus.kernels.attention.fresh_decode import FreshTokens, fresh_decode
from tokenbus.kernels.attention.paged_decode import paged_decode
from tokenbus.kernels.attention.prefix_groups import PrefixGroup, PrefixGroups
from tokenbus.kernels.attention.work_list import DecodeWork, SplitPolicy
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.qkv_rope import qkv_rope
from tokenbus.kernels.quantize import FP8

HEADS, KV_HEADS, PAGE_SIZE = 6, 2, 16
# Tokens of each row with the current one: alone, at the borders of a page, no row, several parts.
LENS = [1, PAGE_SIZE, PAGE_SIZE + 1, 0, 5 * PAGE_SIZE + 3]
MORE = pytest.mark.slow


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Draw a tensor on the CPU, so that both devices test the same numbers."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng).to(DEVICE, dtype)


def fresh_tokens(
    batch: PagedBatch, rotary: int, dtype: torch.dtype, *, normed: bool
) -> FreshTokens:
    """Place the last token of each row; rows without any have the first slot of page 0."""
    positions = (batch.context_lens - 1).clamp(min=0).long()
    pages = batch.block_table.long().gather(1, positions[:, None] // PAGE_SIZE)[:, 0]
    slots = pages * PAGE_SIZE + positions % PAGE_SIZE
    angles = drawn(LENS[-1], rotary // 2, seed=5).repeat(1, 2)
    head_dim = batch.q.shape[2]
    norms = [drawn(head_dim, seed=seed).to(dtype) if normed else None for seed in (6, 7)]
    return FreshTokens(
        positions,
        torch.where(batch.context_lens > 0, slots, 0),
        angles.cos() if rotary else None,
        angles.sin() if rotary else None,
        *norms,
        1e-5,
    )


def work_of(batch: PagedBatch, groups: PrefixGroups | None = None) -> DecodeWork:
    """Cut rows of more than two pages into parts."""
    return DecodeWork(
        max_rows=len(LENS), max_pages=batch.block_table.shape[1], page_size=PAGE_SIZE,
        num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=batch.q.shape[2], device=DEVICE,
        groups=groups, policy=SplitPolicy(2 * PAGE_SIZE, 2 * PAGE_SIZE),
    )  # fmt: skip


@DTYPES
@pytest.mark.parametrize("rounded", [False, True], ids=["plain", "rounded"])
@pytest.mark.parametrize(
    ("head_dim", "rotary", "normed"),
    [
        (32, 32, True),
        pytest.param(48, 16, False, marks=MORE),
        pytest.param(80, 80, True, marks=MORE),
        pytest.param(16, 0, False, marks=MORE),
    ],
)
def test_one_launch_does_what_two_do(
    head_dim: int, rotary: int, normed: bool, rounded: bool, dtype: torch.dtype
) -> None:
    """The same pages, bit by bit, and the same sums, over whole heads that are rotated in part."""
    batch = make_batch(
        LENS, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=head_dim, page_size=PAGE_SIZE,
        dtype=dtype,
    )  # fmt: skip
    qkv = drawn(len(LENS), HEADS + 2 * KV_HEADS, head_dim, dtype=dtype, seed=3)
    fresh = fresh_tokens(batch, rotary, dtype, normed=normed)
    pages, scales = [batch.k_pages, batch.v_pages], [None, None]
    if rounded:
        pages = [page.nan_to_num(1.0).to(FP8) for page in pages]
        pages[1] = pages[1].transpose(2, 3).contiguous()
        scales = [drawn(*batch.k_pages.shape[:3], seed=seed).exp() for seed in (8, 9)]
    kept = [tensor.clone() for tensor in (*pages, *(each for each in scales if each is not None))]
    work = work_of(batch)
    work.build(batch.context_lens)
    options = {"scale": head_dim**-0.5}
    got = fresh_decode(
        qkv, fresh, *pages, batch.block_table, batch.context_lens, work, **options,
        k_scales=scales[0], v_scales=scales[1], out=torch.full_like(batch.q, torch.nan),
    )  # fmt: skip
    k_pages, v_pages, *more = kept
    both = dict(zip(("k_scales", "v_scales"), more, strict=bool(more)))
    q = qkv_rope(
        qkv.flatten(1), k_pages, v_pages, fresh.positions, fresh.slots, num_heads=HEADS,
        cos=fresh.cos, sin=fresh.sin, q_norm=fresh.q_norm, k_norm=fresh.k_norm, eps=fresh.eps,
        **both,
    )  # fmt: skip
    expected = paged_decode(
        q, k_pages, v_pages, batch.block_table, batch.context_lens, work, **options, **both
    )
    assert_close(got, expected, dtype)
    # A row without tokens writes none; the other launch writes it to page 0.
    for mine, theirs in zip(
        (*pages, *(each for each in scales if each is not None)), kept, strict=True
    ):
        assert_close(mine[1:].float().nan_to_num(0.0), theirs[1:].float().nan_to_num(0.0), dtype)
    assert not work.arrivals.any()


def test_tokens_are_not_written_amid_shared_runs() -> None:
    """A tile of several rows takes queries."""
    batch = make_batch(
        LENS, num_heads=HEADS, num_kv_heads=KV_HEADS, head_dim=32, page_size=PAGE_SIZE, dtype=HALF
    )
    groups = PrefixGroups(
        max_rows=len(LENS), page_size=PAGE_SIZE, num_heads=HEADS, num_kv_heads=KV_HEADS,
        device=DEVICE, num_processors=4, min_saved_tokens=0,
    )  # fmt: skip
    groups.assign([PrefixGroup((1, 2), 0, 1)])
    work = work_of(batch, groups=groups)
    qkv = drawn(len(LENS), HEADS + 2 * KV_HEADS, 32, dtype=HALF)
    with pytest.raises(KernelInputError, match="amid shared runs"):
        fresh_decode(
            qkv, fresh_tokens(batch, 32, HALF, normed=True), batch.k_pages, batch.v_pages,
            batch.block_table, batch.context_lens, work, scale=1.0,
        )  # fmt: skip
