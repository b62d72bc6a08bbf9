"""Paged attention on a CPU by compiled kernels, which read pages where they lie."""

from __future__ import annotations

from contextlib import nullcontext
from ctypes import c_int32
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from tokenbus.engine.attention.page_write import write_pages
from tokenbus.kernels.cpu.native import BatchArgs, NativeLibrary, RunArgs, ShapeArgs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.kv_cache import AttentionSpec
    from tokenbus.engine.scheduling.prefix_grouping import SharedRun


# Pages of 16 tokens from which merging one more partial result per row pays: with 24 rows in three
# runs 0.9 x at 8 pages, 1.1 x at 16, on two Zen 5 cores.
_BREAK_EVEN_PAGES = 12


class NativeAttention:
    """Attend by the compiled kernels; what lies beyond a sequence's last token is never read.

    Runs of pages that several decoding sequences hold are read once for all of them, in layers
    without a sliding window.
    """

    def __init__(self, library: NativeLibrary) -> None:
        self.library = library
        self._runs: Sequence[SharedRun] = ()

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, ctx: ForwardContext
    ) -> Tensor:
        """Store k, v of this pass in their slots, then attend causally over the pages."""
        k_pages, v_pages = write_pages(ctx, spec, k, v)
        if q.stride()[1:] != (spec.head_dim, 1):
            q = q.contiguous()
        shape = shape_args(spec, ctx.kv.page_size)
        return self.library.attend(self.batch_args(ctx), shape, q, k_pages, v_pages)

    def assign_runs(self, runs: Sequence[SharedRun]) -> None:
        """Read these runs once for all their rows, from the next decode pass on."""
        self._runs = runs

    @property
    def splits_answers(self) -> bool:
        """Rows read pages where they lie; for a chunk all its context is packed anew."""
        return True

    @property
    def has_runs(self) -> bool:
        """Whether rows of the next decode pass are read together."""
        return bool(self._runs)

    def assuming_runs(self) -> AbstractContextManager[None]:
        """Change nothing: the same kernel reads both."""
        return nullcontext()

    def pays(self, num_rows: int, num_pages: int) -> bool:
        """Tell whether reading a run together beats reading it per row."""
        return num_rows > 1 and num_pages >= _BREAK_EVEN_PAGES

    def batch_args(self, ctx: ForwardContext) -> BatchArgs:
        """Describe a pass to the kernels; the context and this object own the memory."""
        args: BatchArgs | None = ctx.memo.get("native_batch")
        if args is None:
            table = ctx.block_table
            if table.stride(1) != 1:
                table = table.contiguous()
                ctx.memo["native_table"] = table
            args = BatchArgs(
                ctx.positions.shape[0], len(ctx.query_lens), table.stride(0),
                torch.get_num_threads(), ctx.positions.data_ptr(), ctx.slot_mapping.data_ptr(),
                table.data_ptr(), ctx.context_lens.data_ptr(), ctx.cu_seqlens_q.data_ptr(),
            )  # fmt: skip
            if ctx.num_decode and self._runs:
                args.num_runs = len(self._runs)
                args.runs, args.members = run_args(self._runs, args.num_seqs - ctx.num_decode)
            ctx.memo["native_batch"] = args
        return args


def run_args(runs: Sequence[SharedRun], first_row: int) -> tuple[Any, Any]:
    """Describe runs whose rows are counted from sequence `first_row` of a pass."""
    members = [first_row + row for run in runs for row in run.rows]
    ends = accumulate(len(run.rows) for run in runs)
    args = [
        RunArgs(end - len(run.rows), len(run.rows), run.first_page, run.end_page)
        for run, end in zip(runs, ends, strict=True)
    ]
    return (RunArgs * len(args))(*args), (c_int32 * len(members))(*members)


def shape_args(spec: AttentionSpec, page_size: int) -> ShapeArgs:
    """Describe a layer's attention to the kernels."""
    return ShapeArgs(
        spec.num_heads, spec.num_kv_heads, spec.head_dim, page_size,
        spec.sliding_window or 0, spec.scale, spec.softcap or 0.0,
    )  # fmt: skip
