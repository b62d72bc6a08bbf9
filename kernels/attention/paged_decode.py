"""Decode attention: one query token per sequence, or a few, over its pages, shared runs once.

It is one file because a kernel and its launch share every argument.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.attention.decode_items import (
    fetch_first_tile,
    load_item,
    own_item,
    queries_item,
    shared_item,
)
from tokenbus.kernels.launch import (
    dependent_launch,
    next_power_of_2,
    num_processors,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.page_scales import check_page_dtypes

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.attention.work_list import DecodeWork


@dataclass(frozen=True, slots=True)
class DecodeTuning:
    """How the decode kernel is laid out on the chip.

    `depth` and `run_depth` count tiles in flight for own and for shared pages, of `block_n` and
    `run_block_n` tokens. `programs_per_processor` has to fit: programs that wait for a place
    would start their share when the others are done. max_registers: of a thread, None for as many
    as the kernel likes, of which two programs of 128 threads fill a multiprocessor.
    """

    depth: int
    programs_per_processor: int
    run_depth: int = 2
    block_n: int = 64
    run_block_n: int = 64
    num_warps: int = 4
    max_registers: int | None = None


@dataclass(frozen=True, slots=True)
class QueryRows:
    """Where the last tokens of each sequence stand in q, if they are more than one.

    cu_seqlens_q: [N + 1] int32; max_query_len: how many one sequence has at most.
    """

    cu_seqlens_q: Tensor
    max_query_len: int


# Bytes of a K tile for which the depths below fill the shared memory of an H100.
_TILE_BYTES = 64 * 128 * 2
# Rows over FP8 pages up to which the neighbours in a step need the room of a second tile more.
_FEWEST_ROWS = 8
# Sequences of several queries, up to which their neighbours do: a lone one, and one that pads.
_LONE_SEQS = 2
# Rows up to which a fourth program on a multiprocessor finds no item.
_FEW_ROWS = 32


def choose_tuning(
    num_rows: int, row_bytes: int, *, grouped: bool, several: bool = False, rounded: bool = False
) -> DecodeTuning:
    """Pick the layout; swept on an H200 with 64-token pages of 128 dims.

    Three programs with two tiles each stream best; few rows leave no third program anything to do;
    the stacked rows of shared runs leave registers for two. In a step of 64 rows of bf16 three
    took 36 us of 5,591 longer than two that know runs. Beside a lone row's attention the next
    product asks for its weights: with one tile in flight it has room, and a step of the 8B shape
    took 3,656 us instead of 3,946; with eight rows that pays over FP8 pages alone. So it is with
    the last tokens of a lone sequence (`several` queries of each).
    """
    most = _FEWEST_ROWS if rounded else 1
    if several:
        most = 0 if rounded else _LONE_SEQS
    if num_rows <= most and not grouped and row_bytes <= _TILE_BYTES // 64:
        return DecodeTuning(1, 2)
    grouped = grouped or several
    if rounded and row_bytes <= _TILE_BYTES // 128:
        if num_rows > _FEW_ROWS and not grouped:
            # Steps of 64 and 256 rows take 7 and 4 % less than with two tiles in flight and three
            # programs.
            return DecodeTuning(1, 4, max_registers=128)
        return DecodeTuning(2, 2 if grouped else 3)
    if rounded:
        return DecodeTuning(1, 2, run_depth=1, run_block_n=32)
    block_n = min(64, max(16, _TILE_BYTES // row_bytes))
    programs = 2 if grouped or num_rows <= 64 else 3
    return DecodeTuning(2, programs, block_n=block_n, run_block_n=block_n)


@triton.jit
def _decode_kernel(
    q, k_pages, v_pages, k_scales, v_scales, out, block_table, context_lens, cu_seqlens_q, items,
    num_items, parts, members, part_o,
    part_lse, arrivals, table_stride, page_stride, part_stride, scale, softcap, window,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, ROWS: tl.constexpr, RUN_ROWS: tl.constexpr, DEPTH: tl.constexpr,
    RUN_DEPTH: tl.constexpr, RUN_BLOCK_N: tl.constexpr, GROUPED: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr,
    LISTED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Work through every num_programs-th item of the list, back and forth.

    The list is sorted, so turning round after each pass gives every program the same work: no
    ticket counter, no round trip to memory between items.

    The successor is released only after the wait: what was written before this launch's inputs is
    then visible to the next launch over the same list, which so may look at it before its own wait.
    """
    if not LISTED:
        wait_for_inputs(PDL)
        release_successor(PDL)
    total = tl.load(num_items) * HKV
    num_programs = tl.num_programs(0)
    pid = tl.program_id(0)
    # An item's fields are on their way before the previous item is worked on; the first ones even
    # before it is known whether there is an item, for which the list is padded.
    place = pid
    row, begin, end, part, num_parts, count, member = load_item(items, place // HKV, True)
    if place >= total:
        # Makes room for the next kernel. Some program has an item, and waits for the inputs.
        return
    if LISTED:
        fetch_first_tile(k_pages, v_pages, k_scales, v_scales,
                         block_table + row.to(tl.int64) * table_stride, place % HKV,
                         page_stride, begin, D, S, BLOCK_N)  # fmt: skip
        wait_for_inputs(PDL)
        release_successor(PDL)
    for first in tl.range(0, total, num_programs, num_stages=1, disable_licm=True):
        turned = (first // num_programs) % 2 == 0
        following = first + num_programs + tl.where(turned, num_programs - 1 - pid, pid)
        next_row, next_begin, next_end, next_part, next_parts, next_count, next_member = load_item(
            items, following // HKV, following < total
        )
        head = place % HKV
        if place < total:
            if GROUPED:
                if count > 0:
                    shared_item(row, begin, end, part, member, count, head, q, k_pages, v_pages,
                                k_scales, v_scales, out, block_table, context_lens, members,
                                parts, part_o, part_lse,
                                arrivals, table_stride, page_stride, part_stride, scale, softcap,
                                HQ, HKV, D, S, RUN_BLOCK_N, BLOCK_D, RUN_ROWS, RUN_DEPTH,
                                HAS_SOFTCAP, PRECISION)  # fmt: skip
                else:
                    own_item(row, begin, end, part, num_parts, head, q, k_pages, v_pages,
                             k_scales, v_scales, out, block_table, context_lens, part_o,
                             part_lse, arrivals,
                             table_stride, page_stride, part_stride, scale, softcap, window, HQ,
                             HKV, D, S, BLOCK_N, BLOCK_D, ROWS, DEPTH, HAS_WINDOW, HAS_SOFTCAP,
                             PRECISION)  # fmt: skip
            elif cu_seqlens_q is not None:
                queries_item(row, begin, end, part, num_parts, head, q, k_pages, v_pages, k_scales,
                             v_scales, out, block_table, context_lens, cu_seqlens_q, part_o,
                             part_lse, arrivals, table_stride, page_stride, part_stride, scale,
                             softcap, window, HQ, HKV, D, S, BLOCK_N, BLOCK_D, ROWS, DEPTH,
                             HAS_WINDOW, HAS_SOFTCAP, PRECISION)  # fmt: skip
            else:
                own_item(row, begin, end, part, num_parts, head, q, k_pages, v_pages, k_scales,
                         v_scales, out, block_table, context_lens, part_o, part_lse,
                         arrivals,
                         table_stride, page_stride, part_stride, scale, softcap, window, HQ, HKV,
                         D, S, BLOCK_N, BLOCK_D, ROWS, DEPTH, HAS_WINDOW, HAS_SOFTCAP,
                         PRECISION)  # fmt: skip
        place = following
        row, begin, end, part = next_row, next_begin, next_end, next_part
        num_parts, count, member = next_parts, next_count, next_member


def _check(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    queries: QueryRows | None,
    work: DecodeWork,
) -> None:
    """Refuse what the kernel would read wrongly."""
    num_rows, num_heads, head_dim = q.shape
    num_seqs = len(context_lens) if queries else num_rows
    borders = len(queries.cu_seqlens_q) if queries else num_seqs + 1
    require(borders == num_seqs + 1, f"{borders} borders of {num_seqs} sequences")
    require_contiguous(q=q, k_pages=k_pages, v_pages=v_pages)
    shape = (work.num_heads, work.num_kv_heads, work.page_size, work.head_dim)
    given = (num_heads, k_pages.shape[1], k_pages.shape[2], head_dim)
    require(given == shape, f"(Hq, Hkv, S, D) is {given}, the work list was made for {shape}")
    require(k_pages.shape[3] == head_dim, f"pages have D {k_pages.shape[3]}, q has {head_dim}")
    require(16 <= head_dim <= 256 and head_dim % 16 == 0, f"head dim {head_dim}")
    require(num_rows <= work.max_rows, f"{num_rows} rows, buffers hold {work.max_rows}")
    require(block_table.dtype == torch.int32, f"block_table is {block_table.dtype}")
    require(block_table.shape[0] >= num_seqs and block_table.stride(1) == 1, "block_table layout")


def paged_decode(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    block_table: Tensor,
    context_lens: Tensor,
    work: DecodeWork,
    *,
    scale: float,
    softcap: float | None = None,
    listed: bool = False,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    queries: QueryRows | None = None,
    out: Tensor | None = None,
    tuning: DecodeTuning | None = None,
) -> Tensor:
    """Attend one query token per sequence, or a few, over its pages.

    `work.build(context_lens)` has to run before, once per step, with the `max_query_len` of
    `queries`. Window and groups are the work's; several queries know no groups.

    Args:
        q: [N, Hq, D], bf16/fp16/fp32, contiguous, rotated; with `queries` [T, Hq, D].
        k_pages, v_pages: [P, Hkv, S, D], dtype of q; the current token is already in them.
        k_scales, v_scales: [P, Hkv, S] float32 of pages in FP8: value * scale.
        block_table: [N, max_pages] int32; entries past a sequence's last page are never read.
        context_lens: [N] int32, tokens including the current ones; 0 = no sequence, writes zeros.
        queries: where each sequence's queries stand, the last of its tokens. Pages are read once
            for all of them.
        listed: this function was called before since `build`, with the same table. Then a launch
            reads the list and fetches its first pages while its predecessor still runs.
    Returns: as q, of its dtype; softmax and sums in fp32. A row depends on its own tokens
        and on the run it shares, not on the other rows or on timing.
    Raises: KernelInputError if shapes, dtypes or layouts do not match the work list.
    Source: split-KV as in Flash-Decoding (Dao et al. 2023), shared runs as in Hydragen
        (Juravsky et al. 2024); twins: reference.paged_decode and, for `queries`, paged_prefill.
    """
    _check(q, k_pages, v_pages, block_table, context_lens, queries, work)
    check_page_dtypes(q.dtype, k_pages, v_pages, k_scales, v_scales)
    out = torch.empty_like(q) if out is None else out
    require(out.shape == q.shape and out.is_contiguous(), f"out has shape {tuple(out.shape)}")
    num_heads, num_kv_heads, head_dim = work.num_heads, work.num_kv_heads, work.head_dim
    groups = None if queries else work.active_groups
    query_heads = num_heads // num_kv_heads * (queries.max_query_len if queries else 1)
    row_bytes = next_power_of_2(head_dim) * k_pages.element_size()
    tuning = tuning or choose_tuning(
        len(context_lens),
        row_bytes,
        grouped=groups is not None,
        several=queries is not None,
        rounded=k_scales is not None,
    )
    num_programs = num_processors(q.device) * tuning.programs_per_processor
    options = dependent_launch(q.device)
    _decode_kernel[(num_programs,)](
        q,
        k_pages,
        v_pages,
        k_scales,
        v_scales,
        out,
        block_table,
        context_lens,
        queries.cu_seqlens_q if queries else None,
        work.items,
        work.num_items,
        work.parts,
        groups.members if groups else work.items,
        work.part_o,
        work.part_lse,
        work.arrivals,
        block_table.stride(0),
        k_pages.stride(0),
        work.part_stride,
        scale,
        softcap or 1.0,
        work.sliding_window or 0,
        HQ=num_heads,
        HKV=num_kv_heads,
        D=head_dim,
        S=work.page_size,
        BLOCK_N=tuning.block_n,
        # A product in FP8 sums at least 32 numbers.
        BLOCK_D=max(next_power_of_2(head_dim), 16 if k_scales is None else 32),
        ROWS=max(16 if k_scales is None or queries else 8, next_power_of_2(query_heads)),
        RUN_ROWS=groups.tile_rows if groups else 16,
        DEPTH=tuning.depth,
        RUN_DEPTH=tuning.run_depth,
        RUN_BLOCK_N=tuning.run_block_n,
        GROUPED=groups is not None,
        HAS_WINDOW=work.sliding_window is not None,
        HAS_SOFTCAP=softcap is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        LISTED=listed and options["PDL"],
        num_warps=tuning.num_warps,
        maxnreg=tuning.max_registers,
        **options,
    )
    return out
