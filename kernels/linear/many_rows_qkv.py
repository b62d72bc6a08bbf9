"""Many rows projected to queries, keys and values, rotated and written to pages in one launch."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    tma,
)

from tokenbus.kernels.hopper import corner, described, store_tile
from tokenbus.kernels.launch import ceil_div, num_processors, require, require_contiguous
from tokenbus.kernels.linear.many_rows import (
    GROUP,
    STAGES,
    STEP_COLUMNS,
    TILE_OUTS,
    TILE_ROWS,
    WAVE_ROWS,
    fetch,
    products,
    room,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.linear.fp8_qkv import PageTarget

_HALF = gl.constexpr(64)


@gluon.jit
def _halves(head):
    """Take 64 rows of a head apart into its two halves, which the same thread has."""
    return head.reshape([WAVE_ROWS, 2, _HALF]).permute((0, 2, 1)).split()


@gluon.jit
def _turned(acc, norm, cos, sin, eps):
    """Norm a head of 64 rows, if it has a norm, and rotate it."""
    a, b = _halves(acc)
    if norm is not None:
        dims = gl.arange(0, _HALF, layout=gl.SliceLayout(0, a.type.layout))
        scale = gl.rsqrt(gl.sum(a * a + b * b, axis=1) / TILE_OUTS + eps)[:, None]
        a = a * scale * gl.load(norm + dims).to(gl.float32)[None, :]
        b = b * scale * gl.load(norm + _HALF + dims).to(gl.float32)[None, :]
    turned = gl.join(a * cos - b * sin, b * cos + a * sin)
    turned = turned.permute((0, 2, 1)).reshape([WAVE_ROWS, TILE_OUTS])
    return gl.convert_layout(turned, acc.type.layout)


@gluon.jit
def _finish(acc, head, bias, q_norm, k_norm, cos, sin, q_out, k_pages, v_pages, slots, in_pages,
            buffer, row, eps, HQ: gl.constexpr, HKV: gl.constexpr, S: gl.constexpr):  # fmt: skip
    """Add a head's bias, norm and rotate it unless it is of values, and write it to its place."""
    if bias is not None:
        outs = head * TILE_OUTS + gl.arange(0, TILE_OUTS, layout=gl.SliceLayout(0, acc.type.layout))
        live = outs < (HQ + 2 * HKV) * TILE_OUTS
        shift = gl.load(bias + outs, mask=live, other=0.0)
        acc += shift.to(gl.float32)[None, :]
    norm = q_norm
    pages = k_pages
    if q_norm is not None:  # noqa: SIM102 # decided when it is compiled, and when it runs
        if head >= HQ:
            norm = k_norm
    if head >= HQ + HKV:
        pages = v_pages
    else:
        acc = _turned(acc, norm, cos, sin, eps)
    tma.store_wait(0)
    tl.debug_barrier()
    buffer.store(acc.to(buffer.dtype))
    fence_async_shared()
    tl.debug_barrier()
    if head < HQ:
        store_tile(q_out, [row, head * TILE_OUTS], buffer)
    elif head < HQ + 2 * HKV:
        flat: gl.constexpr = slots.type.layout.parent
        columns = gl.arange(0, TILE_OUTS, layout=gl.SliceLayout(0, flat))
        place = slots + (head - HQ) % HKV * (S * TILE_OUTS)
        gl.store(
            pages + place[:, None] + columns[None, :], buffer.load(flat), mask=in_pages[:, None]
        )


@gluon.jit
def _multiply_heads(bias, q_norm, k_norm, cos, sin, positions, slots, q_out, k_pages, v_pages,
                    values, firsts, seconds, buffers, ready, free, tiles, M, WIDTH, page_stride,
                    eps, K: gl.constexpr, HQ: gl.constexpr, HKV: gl.constexpr, S: gl.constexpr,
                    STAGES: gl.constexpr, GROUP: gl.constexpr, WHICH: gl.constexpr):  # fmt: skip
    """Compute half the rows of this program's tiles of two heads: WHICH half."""
    mma: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    half: gl.constexpr = _halves(gl.zeros([WAVE_ROWS, TILE_OUTS], gl.float32, mma))[0].type.layout
    flat: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [4, 1], [1, 0])
    turn = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, col = corner(tile, M, WIDTH, GROUP, TILE_ROWS, 2 * TILE_OUTS)
        row += WHICH * WAVE_ROWS
        # What the end needs is on its way while products are computed. The second half of the
        # table: both halves are equal, and some tables sign the first.
        rows = row + gl.arange(0, WAVE_ROWS, layout=gl.SliceLayout(1, half))
        dims = _HALF + gl.arange(0, _HALF, layout=gl.SliceLayout(0, half))
        position = gl.load(positions + rows, mask=rows < M, other=0).to(gl.int32)
        place = position[:, None] * TILE_OUTS + dims[None, :]
        turn_cos = gl.load(cos + place)
        turn_sin = gl.load(sin + place)
        written = row + gl.arange(0, WAVE_ROWS, layout=gl.SliceLayout(1, flat))
        slot = gl.load(slots + written, mask=written < M, other=0)
        slot = slot // S * page_stride + slot % S * TILE_OUTS
        first, second = products(values, firsts, seconds, ready, free, turn, K, STAGES, WHICH)
        turn += (K + STEP_COLUMNS - 1) // STEP_COLUMNS
        head = col // TILE_OUTS
        _finish(first, head, bias, q_norm, k_norm, turn_cos, turn_sin, q_out, k_pages, v_pages,
                slot, written < M, buffers.index(WHICH), row, eps, HQ, HKV, S)  # fmt: skip
        _finish(second, head + 1, bias, q_norm, k_norm, turn_cos, turn_sin, q_out, k_pages, v_pages,
                slot, written < M, buffers.index(WHICH), row, eps, HQ, HKV, S)  # fmt: skip
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["M"], do_not_specialize_on_alignment=["positions", "slots"])
def _many_rows_qkv_kernel(
    x, weight, bias, q_norm, k_norm, cos, sin, positions, slots, q_out, k_pages, v_pages, M,
    page_stride, eps, K: gl.constexpr, HQ: gl.constexpr, HKV: gl.constexpr, S: gl.constexpr,
    STAGES: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """Compute the heads of M rows, two a tile; x, weight and q_out are tensor descriptors."""
    values, firsts, seconds, buffers, ready, free = room(x, weight, q_out, STAGES)
    WIDTH: gl.constexpr = (HQ + 2 * HKV) * TILE_OUTS
    tiles = gl.cdiv(M, TILE_ROWS) * gl.cdiv(WIDTH, 2 * TILE_OUTS)
    gl.warp_specialize(
        [
            (_multiply_heads, (bias, q_norm, k_norm, cos, sin, positions, slots, q_out, k_pages,
                               v_pages, values, firsts, seconds, buffers, ready, free, tiles, M,
                               WIDTH, page_stride, eps, K, HQ, HKV, S, STAGES, GROUP, 0)),
            (_multiply_heads, (bias, q_norm, k_norm, cos, sin, positions, slots, q_out, k_pages,
                               v_pages, values, firsts, seconds, buffers, ready, free, tiles, M,
                               WIDTH, page_stride, eps, K, HQ, HKV, S, STAGES, GROUP, 1)),
            (fetch, (x, weight, values, firsts, seconds, ready, free, tiles, M, WIDTH, TILE_OUTS, K,
                      STAGES, GROUP, 2 * TILE_OUTS)),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip


def fits_heads(head_dim: int, rotary_dim: int) -> bool:
    """Say whether `many_rows_qkv` takes heads of a size."""
    return bool(head_dim == rotary_dim == TILE_OUTS.value)


def many_rows_qkv(
    x: Tensor,
    weight: Tensor,
    target: PageTarget,
    *,
    bias: Tensor | None = None,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Project many rows, norm and rotate queries and keys, write keys and values into their slots.

    Args:
        x: [M, K], contiguous, rows that `takes_many_rows`. weight: [(Hq + 2 Hkv) * 128, K].
        target: of M tokens, pages in the dtype of x. bias: [(Hq + 2 Hkv) * 128].
        q_norm, k_norm: [128], both or none.
    Returns: q, [M, Hq, 128], dtype of x; everything in between is fp32. Twin: a plain product, then
        `qkv_rope`.
    """
    num_rows, width_in = x.shape
    k_pages = target.k_pages
    _, num_kv_heads, page_size, head_dim = k_pages.shape
    require((q_norm is None) == (k_norm is None), "q_norm and k_norm come together")
    require(target.k_scales is None, "pages of plain numbers")
    require_contiguous(x=x, weight=weight, k_pages=k_pages, v_pages=target.v_pages)
    q_out = x.new_empty(num_rows, target.num_heads, head_dim)
    tiles = ceil_div(num_rows, TILE_ROWS.value) * ceil_div(weight.shape[0], 2 * TILE_OUTS.value)
    _many_rows_qkv_kernel[(min(num_processors(x.device), tiles),)](
        described(x, TILE_ROWS.value, STEP_COLUMNS.value),
        described(weight, TILE_OUTS.value, STEP_COLUMNS.value),
        bias,
        q_norm,
        k_norm,
        target.cos,
        target.sin,
        target.positions,
        target.slots,
        described(q_out.view(num_rows, -1), WAVE_ROWS.value, TILE_OUTS.value),
        k_pages,
        target.v_pages,
        num_rows,
        k_pages.stride(0),
        eps,
        K=width_in,
        HQ=target.num_heads,
        HKV=num_kv_heads,
        S=page_size,
        STAGES=STAGES,
        GROUP=GROUP,
        num_warps=4,
    )
    return q_out
