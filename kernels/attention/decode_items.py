"""Device functions of paged decode: items of own tokens, of several queries, of shared runs."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.attention.decode_tile import attend_range, merge_rows
from tokenbus.kernels.attention.rounded_tile import attend_rounded, attend_widened

ITEM_FIELDS = tl.constexpr(8)


@triton.jit
def load_item(items, index, there):
    """Load the fields of one item: row, tokens, part, parts, members, first member."""
    item = items + index * ITEM_FIELDS
    row = tl.load(item, mask=there, other=0)
    begin = tl.load(item + 1, mask=there, other=0)
    end = tl.load(item + 2, mask=there, other=0)
    part = tl.load(item + 3, mask=there, other=0)
    num_parts = tl.load(item + 4, mask=there, other=0)
    num_members = tl.load(item + 5, mask=there, other=0)
    first_member = tl.load(item + 6, mask=there, other=0)
    return row, begin, end, part, num_parts, num_members, first_member


@triton.jit
def _fetch_line(address):
    """Ask for 128 bytes at each address to be brought to the L2 cache."""
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [address.to(tl.int64, bitcast=True)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def fetch_first_tile(k_pages, v_pages, k_scales, v_scales, table_row, head, page_stride, begin,
                     D: tl.constexpr, S: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Ask for an item's first keys and values before the inputs are there.

    A token that an earlier kernel still writes may be among them: the L2 cache is where writes
    and reads meet, so nothing goes stale.
    """
    PER_LINE: tl.constexpr = 1024 // k_pages.dtype.element_ty.primitive_bitwidth
    TOKENS: tl.constexpr = min(BLOCK_N, S)
    LINES: tl.constexpr = (TOKENS * D + PER_LINE - 1) // PER_LINE
    page = tl.load(table_row + begin // S).to(tl.int64)
    base = page * page_stride + head * (S * D) + begin % S * D
    lines = tl.minimum(tl.arange(0, triton.next_power_of_2(LINES)), LINES - 1)
    _fetch_line(k_pages + base + lines * PER_LINE)
    _fetch_line(v_pages + base + lines * PER_LINE)
    if k_scales is not None:
        # A line has the scales of 32 tokens.
        places = base // D + tl.arange(0, (TOKENS + 31) // 32) * 32
        _fetch_line(k_scales + places)
        _fetch_line(v_scales + places)


@triton.jit
def _store_part(result, lse, first_slot, part, valid, part_o, part_lse, HQ: tl.constexpr,
                D: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Leave the partial result of some rows where the last arriver will find it."""
    offs_d = tl.arange(0, BLOCK_D)
    slot = first_slot + part * HQ
    tl.store(part_o + slot[:, None] * D + offs_d[None, :], result,
             mask=valid[:, None] & (offs_d < D)[None, :], cache_modifier=".cg")  # fmt: skip
    copies = tl.arange(0, 4)[None, :]
    tl.store(part_lse + slot[:, None] * 4 + copies, lse[:, None] + tl.zeros([1, 4], tl.float32),
             mask=valid[:, None] & (copies < 4), cache_modifier=".cg")  # fmt: skip
    # All threads' stores come before the arrival.
    tl.debug_barrier()


@triton.jit
def _arrive(rows, heads, valid, arrivals, num_parts, HQ: tl.constexpr):
    """Count one part of each row in; say for which rows it was the last, resetting their count."""
    counter = arrivals + rows * HQ + heads
    before = tl.atomic_add(counter, 1, mask=valid, sem="acq_rel", scope="gpu")
    is_last = valid & (before == num_parts - 1)
    tl.store(counter, 0, mask=is_last)
    return is_last


@triton.jit
def own_item(row, begin, end, part, num_parts, head, q, k_pages, v_pages, k_scales, v_scales,
              out, block_table, context_lens, part_o, part_lse, arrivals, table_stride,
              page_stride, part_stride, scale, softcap, window, HQ: tl.constexpr, HKV: tl.constexpr,
              D: tl.constexpr, S: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
              ROWS: tl.constexpr, DEPTH: tl.constexpr, HAS_WINDOW: tl.constexpr,
              HAS_SOFTCAP: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Attend the heads of one KV head of one sequence over one part of its own pages."""
    GROUP: tl.constexpr = HQ // HKV
    GROUP_BLOCK: tl.constexpr = triton.next_power_of_2(GROUP)
    offs_r = tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    heads = head * GROUP + offs_r
    valid = offs_r < GROUP
    mask = valid[:, None] & (offs_d < D)[None, :]
    out_row = row * HQ + heads
    place = out_row[:, None] * D + offs_d[None, :]
    first_visible = 0
    if HAS_WINDOW:
        first_visible = tl.load(context_lens + row) - window
    table_row = block_table + row.to(tl.int64) * table_stride
    if k_scales is not None:
        twice = tl.arange(0, 2 * ROWS) // 2
        place_twice = (row * HQ + head * GROUP + twice)[:, None] * D + offs_d[None, :]
        mask_twice = (twice < GROUP)[:, None] & (offs_d < D)[None, :]
        result, lse = attend_rounded(
            tl.load(q + place_twice, mask=mask_twice, other=0.0), k_pages, v_pages, k_scales,
            v_scales, table_row, head, page_stride, begin, end, first_visible, scale, softcap, ROWS,
            D, S, HKV, BLOCK_N, BLOCK_D, 2 * DEPTH + 1, HAS_WINDOW, HAS_SOFTCAP,
        )  # fmt: skip
    else:
        query = tl.load(q + place, mask=mask, other=0.0)
        result, lse = attend_range(
            query, k_pages, v_pages, table_row, head * (S * D), page_stride, begin, end, None,
            first_visible, scale, softcap, ROWS, D, S, BLOCK_N, BLOCK_D, DEPTH, True, HAS_WINDOW,
            HAS_SOFTCAP, PRECISION, "evict_first",
        )  # fmt: skip
    if num_parts == 1:
        tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)
    else:
        slot_row = row * part_stride * HQ
        _store_part(result, lse, slot_row + heads, part, valid, part_o, part_lse,
                    HQ, D, BLOCK_D)  # fmt: skip
        # The heads alone, without the rows that pad the tile.
        offs_g = tl.arange(0, GROUP_BLOCK)
        group_heads = head * GROUP + offs_g
        rows = tl.zeros([GROUP_BLOCK], tl.int32) + row
        row_parts = tl.zeros([GROUP_BLOCK], tl.int32) + num_parts
        is_last = _arrive(rows, group_heads, offs_g < GROUP, arrivals, row_parts, HQ)
        if tl.max(is_last.to(tl.int32)) > 0:
            tl.debug_barrier()
            merge_rows(part_o, part_lse, out, slot_row + group_heads,
                       row * HQ + group_heads, row_parts, is_last, HQ, D, BLOCK_D,
                       8)  # fmt: skip


@triton.jit
def queries_item(row, begin, end, part, num_parts, head, q, k_pages, v_pages, k_scales, v_scales,
                 out, block_table, context_lens, cu_seqlens_q, part_o, part_lse, arrivals,
                 table_stride, page_stride, part_stride, scale, softcap, window, HQ: tl.constexpr,
                 HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr, BLOCK_N: tl.constexpr,
                 BLOCK_D: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
                 HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Attend the stacked heads of a sequence's last tokens over one part of its pages.

    Each of them sees what is before it and itself.
    """
    GROUP: tl.constexpr = HQ // HKV
    offs_r = tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    first_row = tl.load(cu_seqlens_q + row)
    num_queries = tl.load(cu_seqlens_q + row + 1) - first_row
    query_idx = offs_r // GROUP
    valid = query_idx < num_queries
    rows = first_row + query_idx
    heads = head * GROUP + offs_r % GROUP
    place = (rows * HQ + heads)[:, None] * D + offs_d[None, :]
    mask = valid[:, None] & (offs_d < D)[None, :]
    query = tl.load(q + place, mask=mask, other=0.0)
    row_ends = tl.load(context_lens + row) - num_queries + 1 + query_idx
    first_visible = row_ends - window
    table_row = block_table + row.to(tl.int64) * table_stride
    if k_scales is not None:
        result, lse = attend_widened(
            query, k_pages, v_pages, k_scales, v_scales, table_row, head, page_stride, begin, end,
            row_ends, first_visible, scale, softcap, ROWS, D, S, HKV, BLOCK_N, BLOCK_D,
            2 * DEPTH + 1, HAS_WINDOW, HAS_SOFTCAP, PRECISION,
        )  # fmt: skip
    else:
        result, lse = attend_range(
            query, k_pages, v_pages, table_row, head * (S * D), page_stride, begin, end, row_ends,
            first_visible, scale, softcap, ROWS, D, S, BLOCK_N, BLOCK_D, DEPTH, True, HAS_WINDOW,
            HAS_SOFTCAP, PRECISION, "evict_first",
        )  # fmt: skip
    if num_parts == 1:
        tl.store(out + place, result.to(out.dtype.element_ty), mask=mask)
    else:
        _store_part(result, lse, rows * part_stride * HQ + heads, part, valid, part_o, part_lse,
                    HQ, D, BLOCK_D)  # fmt: skip
        row_parts = tl.zeros([ROWS], tl.int32) + num_parts
        is_last = _arrive(rows, heads, valid, arrivals, row_parts, HQ)
        if tl.max(is_last.to(tl.int32)) > 0:
            tl.debug_barrier()
            flags = tl.reshape(is_last.to(tl.int32), [ROWS // 16, 16])
            for chunk in range(ROWS // 16):
                done = _chunk_of(flags, chunk, ROWS)
                offs_c = chunk * 16 + tl.arange(0, 16)
                done_rows = first_row + offs_c // GROUP
                done_heads = head * GROUP + offs_c % GROUP
                done_parts = tl.zeros([16], tl.int32) + num_parts
                merge_rows(part_o, part_lse, out, done_rows * part_stride * HQ + done_heads,
                           done_rows * HQ + done_heads, done_parts, done, HQ, D, BLOCK_D,
                           4)  # fmt: skip


@triton.jit
def shared_item(table_row, begin, end, part, first_member, num_members, head, q, k_pages,
                 v_pages, k_scales, v_scales, out, block_table, context_lens,
                 members, parts, part_o, part_lse,
                 arrivals, table_stride, page_stride, part_stride, scale, softcap,
                 HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, S: tl.constexpr,
                 BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr,
                 DEPTH: tl.constexpr, HAS_SOFTCAP: tl.constexpr,
                 PRECISION: tl.constexpr):  # fmt: skip
    """Attend the stacked heads of several sequences over one part of their common pages."""
    GROUP: tl.constexpr = HQ // HKV
    offs_r = tl.arange(0, ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    member = offs_r // GROUP
    valid = member < num_members
    rows = tl.load(members + first_member + member, mask=valid, other=0)
    # A row that ended on the device stays in the table until the host regroups.
    valid = valid & (tl.load(context_lens + rows, mask=valid, other=0) > 0)
    heads = head * GROUP + offs_r % GROUP
    place = (rows * HQ + heads)[:, None] * D + offs_d[None, :]
    query = tl.load(q + place, mask=valid[:, None] & (offs_d < D)[None, :], other=0.0)
    table = block_table + table_row.to(tl.int64) * table_stride
    if k_scales is not None:
        result, lse = attend_widened(
            query, k_pages, v_pages, k_scales, v_scales, table, head, page_stride, begin, end,
            None, 0, scale, softcap, ROWS, D, S, HKV, BLOCK_N, BLOCK_D, 2 * DEPTH + 1, False,
            HAS_SOFTCAP, PRECISION,
        )  # fmt: skip
    else:
        result, lse = attend_range(
            query, k_pages, v_pages, table, head * (S * D), page_stride, begin, end, None, 0, scale,
            softcap, ROWS, D, S, BLOCK_N, BLOCK_D, DEPTH, S % BLOCK_N != 0, False, HAS_SOFTCAP,
            PRECISION, "evict_last",
        )  # fmt: skip
    first_slot = rows * part_stride * HQ + heads
    _store_part(result, lse, first_slot, part, valid, part_o, part_lse, HQ, D, BLOCK_D)
    num_parts = tl.load(parts + rows, mask=valid, other=0)
    is_last = _arrive(rows, heads, valid, arrivals, num_parts, HQ)
    if tl.max(is_last.to(tl.int32)) > 0:
        tl.debug_barrier()
        _merge_tile(is_last, first_member, head, members, parts, part_o, part_lse, out,
                    part_stride, HQ, GROUP, D, BLOCK_D, ROWS)  # fmt: skip


@triton.jit
def _chunk_of(flags, chunk, ROWS: tl.constexpr):
    """Return which of the 16 rows of a chunk are flagged, of [ROWS // 16, 16]."""
    chunks = tl.arange(0, ROWS // 16)
    return tl.sum(tl.where((chunks == chunk)[:, None], flags, 0), axis=0) > 0


@triton.jit
def _merge_tile(is_last, first_member, head, members, parts, part_o, part_lse, out, part_stride,
                HQ: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
                ROWS: tl.constexpr):  # fmt: skip
    """Merge the finished rows of a tall tile 16 at a time, since all at once would spill."""
    flags = tl.reshape(is_last.to(tl.int32), [ROWS // 16, 16])
    for chunk in range(ROWS // 16):
        done = _chunk_of(flags, chunk, ROWS)
        offs_r = chunk * 16 + tl.arange(0, 16)
        rows = tl.load(members + first_member + offs_r // GROUP, mask=done, other=0)
        heads = head * GROUP + offs_r % GROUP
        num_parts = tl.load(parts + rows, mask=done, other=0)
        merge_rows(part_o, part_lse, out, rows * part_stride * HQ + heads, rows * HQ + heads,
                   num_parts, done, HQ, D, BLOCK_D, 4)  # fmt: skip
