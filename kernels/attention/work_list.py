"""The device-side work list of paged decode: which program reads which tokens of a row.

It is one file because buffers, the kernel that fills them and its policies follow one layout.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.attention.prefix_groups import ITEM_FIELDS, MAX_RUN_PARTS, PrefixGroups
from tokenbus.kernels.launch import (
    ceil_div,
    next_power_of_2,
    num_processors,
    require,
    require_contiguous,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class SplitPolicy:
    """Into how many parts a sequence's own tokens are cut, by their number alone.

    Parts double from `min_tokens` until there are at most `target_parts` of them, from
    `wide_tokens` on until there are at most `max_parts`. Sizes are powers of two.
    """

    min_tokens: int
    wide_tokens: int
    target_parts: int = 32
    max_parts: int = 32

    def most_parts(self, num_tokens: int) -> int:
        """Bound the parts of a sequence of up to `num_tokens`."""
        wide = ceil_div(num_tokens, self.wide_tokens)
        return min(self.max_parts, max(self.target_parts, wide))


# No layout of the decode kernel starts more programs per multiprocessor.
PROGRAMS_PER_PROCESSOR = 4

# Few rows have to spread over the chip; many fill it unsplit, and every part costs a merge. Up to
# 16 rows the linears run in other kernels as well, so rounding changes at one more border only.
# Swept on an H200: 64 tokens a part halve the time of one short sequence, as long as all parts of
# 8 KV heads find a place at once; 2,048 reach the bandwidth of a copy with 256 mixed sequences, of
# which 128 tokens lose 13 %.
DEFAULT_POLICIES: tuple[tuple[int, SplitPolicy], ...] = (
    (4, SplitPolicy(64, 1024, target_parts=8)),
    (8, SplitPolicy(128, 1024, target_parts=4)),
    (16, SplitPolicy(256, 1024, target_parts=2)),
    (32, SplitPolicy(512, 512)),
    (128, SplitPolicy(1024, 1024)),
    (1 << 30, SplitPolicy(2048, 2048)),
)
# A part of FP8 pages has half the bytes: 8 rows of 300 tokens took 50 us of 3,096 less unsplit.
ROUNDED_POLICIES = tuple(
    (limit, SplitPolicy(512, 1024) if limit == 8 else policy) for limit, policy in DEFAULT_POLICIES
)


@triton.jit
def _row_plan(context, shared_pages, window, S: tl.constexpr, MIN_SHIFT: tl.constexpr,
              WIDE_SHIFT: tl.constexpr, TARGET_PARTS: tl.constexpr, MAX_PARTS: tl.constexpr,
              HAS_WINDOW: tl.constexpr):  # fmt: skip
    """Cut each row's own pages into parts of 1 << shift pages, the last one shorter."""
    num_pages = (context + S - 1) // S
    first = shared_pages
    if HAS_WINDOW:
        first = tl.maximum(context - window, 0) // S
    last = tl.maximum(num_pages - first - 1, 0)
    shift = tl.full(context.shape, MIN_SHIFT, tl.int32)
    # 16 doublings take 64-token parts to 4M tokens.
    for _ in tl.static_range(16):
        limit = tl.where(shift < WIDE_SHIFT, TARGET_PARTS, MAX_PARTS)
        shift += (last >> shift >= limit).to(tl.int32)
    parts = (last >> shift) + 1
    return first, num_pages, shift, parts


@triton.jit
def _tail_key(context, first, num_pages, shift, parts):
    """Measure the last part of each row in pages; 0 for rows without tokens."""
    return tl.where(context > 0, num_pages - first - ((parts - 1) << shift), 0)


@triton.jit
def _own_place(index, num_own, num_runs, WAVE: tl.constexpr):
    """Place the own item `index` in the list, waves of run items and of own items alternating.

    Run items compute, own items wait for memory: side by side both units are busy.
    """
    mixed = tl.minimum(num_own, num_runs) // WAVE * WAVE
    return tl.where(index < mixed, index + (index // WAVE + 1) * WAVE, index + num_runs)


@triton.jit
def _run_place(index, num_own, num_runs, WAVE: tl.constexpr):
    """Place the run item `index` in the list; see `_own_place`."""
    mixed = tl.minimum(num_own, num_runs) // WAVE * WAVE
    return tl.where(index < mixed, index + index // WAVE * WAVE, index + mixed)


@triton.jit
def _copy_runs(run_items, items, num_own, num_runs, first, step, WAVE: tl.constexpr,
               FIELDS: tl.constexpr):  # fmt: skip
    """Copy every `step`-th block of run items to its place in the list."""
    offs = tl.arange(0, FIELDS)[None, :]
    for block in range(first, num_runs, step):
        index = block + tl.arange(0, 16)
        mask = (index < num_runs)[:, None] & (offs < FIELDS)
        fields = tl.load(run_items + index[:, None] * FIELDS + offs, mask=mask)
        place = _run_place(index, num_own, num_runs, WAVE)
        tl.store(items + place[:, None] * FIELDS + offs, fields, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])
def _build_kernel(
    context_lens, shared_pages, shared_parts, run_items, num_runs, items, num_items, parts_out,
    num_rows, window, S: tl.constexpr, MIN_SHIFT: tl.constexpr, WIDE_SHIFT: tl.constexpr,
    TARGET_PARTS: tl.constexpr, MAX_PARTS: tl.constexpr, GROUPED: tl.constexpr,
    HAS_WINDOW: tl.constexpr, WAVE: tl.constexpr, FIELDS: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Emit the parts of BLOCK_R rows; whole splits first, then each row's last part by length."""
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = rows < num_rows
    context = tl.load(context_lens + rows, mask=live, other=0)
    shared = tl.zeros([BLOCK_R], tl.int32)
    held = tl.zeros([BLOCK_R], tl.int32)
    if GROUPED:
        shared = tl.load(shared_pages + rows, mask=live & (context > 0), other=0)
        held = tl.load(shared_parts + rows, mask=live & (context > 0), other=0)
    first, num_pages, shift, parts = _row_plan(
        context, shared, window, S, MIN_SHIFT, WIDE_SHIFT, TARGET_PARTS, MAX_PARTS, HAS_WINDOW
    )
    key = _tail_key(context, first, num_pages, shift, parts)
    # Every program ranks its rows against all rows: no second launch, no atomics, fixed order.
    before = tl.zeros([BLOCK_R], tl.int32)
    rank = tl.zeros([BLOCK_R], tl.int32)
    whole = tl.zeros([], tl.int32)
    for chunk in range(0, num_rows, BLOCK_C):
        other = chunk + tl.arange(0, BLOCK_C)
        there = other < num_rows
        o_context = tl.load(context_lens + other, mask=there, other=0)
        o_shared = tl.zeros([BLOCK_C], tl.int32)
        if GROUPED:
            o_shared = tl.load(shared_pages + other, mask=there & (o_context > 0), other=0)
        o_first, o_pages, o_shift, o_parts = _row_plan(
            o_context, o_shared, window, S, MIN_SHIFT, WIDE_SHIFT, TARGET_PARTS, MAX_PARTS,
            HAS_WINDOW,
        )  # fmt: skip
        o_key = _tail_key(o_context, o_first, o_pages, o_shift, o_parts)
        o_whole = tl.where(there, o_parts - 1, 0)
        whole += tl.sum(o_whole)
        earlier = other[None, :] < rows[:, None]
        before += tl.sum(tl.where(earlier, o_whole[None, :], 0), axis=1)
        ahead = (o_key[None, :] > key[:, None]) | ((o_key[None, :] == key[:, None]) & earlier)
        rank += tl.sum(tl.where(ahead & there[None, :], 1, 0), axis=1)
    tl.store(parts_out + rows, held + parts, mask=live)
    num_own = whole + num_rows
    runs = 0
    if GROUPED:
        runs = tl.load(num_runs)
        _copy_runs(run_items, items, num_own, runs, tl.program_id(0) * 16,
                   tl.num_programs(0) * 16, WAVE, FIELDS)  # fmt: skip
    if tl.program_id(0) == 0:
        tl.store(num_items, num_own + runs)
    most = tl.max(tl.where(live, parts, 0))
    for j0 in range(0, most, BLOCK_J):
        j = (j0 + tl.arange(0, BLOCK_J))[None, :]
        is_last = j == parts[:, None] - 1
        index = tl.where(is_last, (whole + rank)[:, None], before[:, None] + j)
        begin = (first[:, None] + (j << shift[:, None])) * S
        end = tl.minimum((first[:, None] + ((j + 1) << shift[:, None])) * S, context[:, None])
        emit = live[:, None] & (j < parts[:, None])
        slot = items + _own_place(index, num_own, runs, WAVE) * FIELDS
        tl.store(slot, tl.broadcast_to(rows[:, None], index.shape), mask=emit)
        tl.store(slot + 1, tl.minimum(begin, end), mask=emit)
        tl.store(slot + 2, end, mask=emit)
        tl.store(slot + 3, held[:, None] + j, mask=emit)
        tl.store(slot + 4, tl.broadcast_to((held + parts)[:, None], index.shape), mask=emit)
        tl.store(slot + 5, tl.zeros(index.shape, tl.int32), mask=emit)


def _shift(num_tokens: int, page_size: int) -> int:
    """Return log2 of a split in pages, at least one page."""
    return max(num_tokens // page_size, 1).bit_length() - 1


class DecodeWork:
    """Static buffers of paged decode for one attention shape, and the list that drives it.

    Build the list once per step; every layer of the same shape reads it. All batch sizes up to
    `max_rows` share one object, so graphs of several buckets share its memory. rounded: whether
    pages are of FP8, which are cut otherwise.

    items: [capacity, 8] int32: row, first token, end token, part, parts of the row, members
        (0 for a row's own tokens), first member.
    parts: [max_rows] int32, partial results of each row, those of shared runs included.
    part_o, part_lse: fp32 partial results, [max_rows, part_stride, Hq, D] and [..., Hq, 4].
    arrivals: [max_rows, Hq] int32, zero between launches; the last arriver resets it.
    assumes_runs: whether lists are built and read as if there were runs, to compile for them.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        max_pages: int,
        page_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
        sliding_window: int | None = None,
        groups: PrefixGroups | None = None,
        policy: SplitPolicy | None = None,
        rounded: bool = False,
    ) -> None:
        require(num_heads % num_kv_heads == 0, f"{num_heads} heads over {num_kv_heads} KV heads")
        require(next_power_of_2(page_size) == page_size >= 16, f"page size {page_size}")
        require(sliding_window is None or groups is None, "windowed layers cannot share runs")
        self.page_size = page_size
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.sliding_window = sliding_window
        self.groups = groups
        self.assumes_runs = False
        self.max_rows = max_rows
        self.policies = ROUNDED_POLICIES if rounded else DEFAULT_POLICIES
        if policy is not None:
            self.policies = ((max_rows, policy),)
        most = (policy.most_parts(max_pages * page_size) for _, policy in self.policies)
        self.max_parts = max(most)
        self.part_stride = self.max_parts + (2 * MAX_RUN_PARTS if groups else 0)
        capacity = max_rows * self.max_parts + (groups.capacity if groups else 0)
        # Programs look at their first item before they know how many there are.
        capacity = max(capacity, PROGRAMS_PER_PROCESSOR * num_processors(device))

        def counters(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=device)

        self.items = counters(capacity, ITEM_FIELDS)
        self.num_items = counters(1)
        self.parts = counters(max_rows)
        self.arrivals = counters(max_rows, num_heads)
        shape = (max_rows, self.part_stride, num_heads)
        self.part_o = torch.empty(*shape, head_dim, dtype=torch.float32, device=device)
        self.part_lse = torch.empty(*shape, 4, dtype=torch.float32, device=device)
        self._wave = ceil_div(num_processors(device), num_kv_heads)

    @property
    def active_groups(self) -> PrefixGroups | None:
        """The groups if there are any: a kernel that knows runs has half as many programs."""
        groups = self.groups
        is_active = groups is not None and (self.assumes_runs or not groups.is_empty)
        return groups if is_active else None

    def build(self, context_lens: Tensor, max_query_len: int = 1) -> None:
        """Write the work list for the rows of `context_lens`, [N] int32, on the device.

        What reads it has to be launched, or captured, with the same `active_groups`. Rows of up to
        `max_query_len` > 1 queries are read by themselves.
        """
        num_rows = context_lens.shape[0]
        require(num_rows <= self.max_rows, f"{num_rows} rows, buffers hold {self.max_rows}")
        require(context_lens.dtype == torch.int32, f"context_lens is {context_lens.dtype}")
        require_contiguous(context_lens=context_lens)
        policy = next(policy for limit, policy in self.policies if num_rows <= limit)
        groups = self.active_groups if max_query_len == 1 else None
        # The first of a row's queries has the window that begins first.
        window = self.sliding_window and self.sliding_window + max_query_len - 1
        block_r = 16
        _build_kernel[(ceil_div(num_rows, block_r),)](
            context_lens,
            groups.shared_pages if groups else None,
            groups.shared_parts if groups else None,
            groups.items if groups else None,
            groups.num_items if groups else None,
            self.items,
            self.num_items,
            self.parts,
            num_rows,
            window or 0,
            S=self.page_size,
            MIN_SHIFT=_shift(policy.min_tokens, self.page_size),
            WIDE_SHIFT=_shift(policy.wide_tokens, self.page_size),
            TARGET_PARTS=min(policy.target_parts, self.max_parts),
            MAX_PARTS=self.max_parts,
            GROUPED=groups is not None,
            HAS_WINDOW=self.sliding_window is not None,
            WAVE=self._wave,
            FIELDS=ITEM_FIELDS,
            BLOCK_R=block_r,
            BLOCK_C=min(256, next_power_of_2(max(num_rows, 16))),
            BLOCK_J=16,
            num_warps=4,
        )
