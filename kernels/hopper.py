"""Shared parts of Gluon kernels for Hopper: tiles, and sums of programs that share one."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

if TYPE_CHECKING:
    from torch import Tensor

# Triton 3.6 has other names for them than its later versions.
load_tile = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_tile = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

_KEPT = {
    torch.bfloat16: gl.bfloat16,
    torch.float16: gl.float16,
    torch.float8_e4m3fn: gl.float8e4nv,
}


@cache
def is_hopper(device: torch.device) -> bool:
    """Say whether a device has what these kernels are made of (compute capability 9)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


@cache
def _layout(height: int, width: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    """Return how a tile lies in shared memory; found out anew, it takes the host 18 us."""
    return gl.NVMMASharedLayout.get_default_for([height, width], _KEPT[dtype])


def described(tensor: Tensor, height: int, width: int = 128) -> TensorDescriptor:
    """Describe tiles of a tensor, as the kernels take them."""
    layout = _layout(height, width, tensor.dtype)
    return TensorDescriptor.from_tensor(tensor, [height, width], layout)


@gluon.jit
def corner(tile, M, N, GROUP: gl.constexpr, ROWS: gl.constexpr, OUTS: gl.constexpr):
    """Return the first row and output of a tile: GROUP tiles of rows take turns at columns."""
    tiles_m = gl.cdiv(M, ROWS)
    tiles_n = gl.cdiv(N, OUTS)
    first = tile // (GROUP * tiles_n) * GROUP
    height = gl.minimum(tiles_m - first, GROUP)
    row = (first + tile % (GROUP * tiles_n) % height) * ROWS
    return row, tile % (GROUP * tiles_n) // height * OUTS


@gluon.jit
def barriers(STAGES: gl.constexpr, WRITERS: gl.constexpr, READERS: gl.constexpr):
    """Return the barriers of slots that are filled in turn: of those ready, and of those free."""
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(ready.index(slot), count=WRITERS)
        mbarrier.init(free.index(slot), count=READERS)
    return ready, free


@gluon.jit
def sum_parts(acc, parts, arrivals, tile, part, SPLITS: gl.constexpr):
    """Leave the sums of a part, and return those of all and whether this was the last to end.

    In the order of the columns, whichever program comes last, so that timing does not matter.
    """
    WIDTH: gl.constexpr = acc.shape[1]
    SIZE: gl.constexpr = acc.shape[0] * WIDTH
    rows = gl.arange(0, acc.shape[0], layout=gl.SliceLayout(1, acc.type.layout))
    cols = gl.arange(0, WIDTH, layout=gl.SliceLayout(0, acc.type.layout))
    place = parts + tile * (SPLITS * SIZE) + rows[:, None] * WIDTH + cols[None, :]
    gl.store(place + part * SIZE, acc, cache_modifier=".cg")
    tl.debug_barrier()
    is_last = gl.atomic_add(arrivals + tile, 1, sem="acq_rel", scope="gpu") == SPLITS - 1
    if is_last:
        tl.debug_barrier()
        gl.store(arrivals + tile, 0)
        acc = gl.load(place, cache_modifier=".cg")
        for other in gl.static_range(1, SPLITS):
            acc += gl.load(place + other * SIZE, cache_modifier=".cg")
    return acc, is_last
