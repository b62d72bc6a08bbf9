"""Paged attention on a CPU by compiled kernels, which read pages where they lie."""

from __future__ import annotations

from contextlib import nullcontext
from ctypes import c_int32
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch

from tokenbus.engine.attention.page_write import write_pages
from tokenbus.engine.scheduling.prefix_grouping import SharedRun
from tokenbus.kernels.cpu.native import BatchArgs, NativeLibrary, RunArgs, ShapeArgs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.kv_cache import AttentionSpec


# Pages of 16 tokens from which merging one more partial result per row pays: with 24 rows in three
# runs 0.9 x at 8 pages, 1.1 x at 16, on two Zen 5 cores.
_BREAK_EVEN_PAGES = 12
# Up to so many queries of a sequence, behind so many times as many tokens, are drafts or forced
# tokens, and no prompt.
_FEW_QUERIES, _FAR_BEHIND = 16, 8


class NativeAttention:
    """Attend by the compiled kernels; what lies beyond a sequence's last token is never read.

    Runs of pages that several decoding sequences hold are read once for all of them, in layers
    without a sliding window.
    """

    def __init__(self, library: NativeLibrary) -> None:
        self.library = library
        self._runs: tuple[SharedRun, ...] = ()

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
        self._runs = tuple(runs)

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
            batch = ctx.memo["native_rows"] = self._rows_of(ctx)
            table = batch.block_table
            args = BatchArgs(
                ctx.positions.shape[0], len(batch.context_lens), table.stride(0),
                torch.get_num_threads(), ctx.positions.data_ptr(), ctx.slot_mapping.data_ptr(),
                table.data_ptr(), batch.context_lens.data_ptr(), batch.borders.data_ptr(),
            )  # fmt: skip
            if batch.runs:
                args.num_runs = len(batch.runs)
                args.runs, args.members = run_args(batch.runs)
            ctx.memo["native_batch"] = args
        return args

    def _rows_of(self, ctx: ForwardContext) -> _Rows:
        """Return the sequences of a pass; of a few queries behind many tokens each is one itself.

        A prompt's keys and values are packed anew in every layer, which pays for many queries.
        """
        seqs: list[int] = []
        lens: list[int] = []
        borders = [0]
        runs: list[SharedRun] = []
        for seq, (num, context) in enumerate(
            zip(ctx.query_lens, ctx.context_lens_host, strict=True)
        ):
            if not 1 < num <= _FEW_QUERIES or context < _FAR_BEHIND * num:
                seqs.append(seq)
                lens.append(context)
                borders.append(borders[-1] + num)
                continue
            num_pages = (context - num) // ctx.kv.page_size
            if self.pays(num, num_pages):
                runs.append(SharedRun(tuple(range(len(seqs), len(seqs) + num)), 0, num_pages))
            seqs += [seq] * num
            lens += range(context - num + 1, context + 1)
            borders += range(borders[-1] + 1, borders[-1] + num + 1)
        table, lens_given, borders_given = ctx.block_table, ctx.context_lens, ctx.cu_seqlens_q
        if len(seqs) > len(ctx.query_lens):
            table = table[torch.tensor(seqs)]
            lens_given = torch.tensor(lens, dtype=torch.int32)
            borders_given = torch.tensor(borders, dtype=torch.int32)
        if ctx.num_decode:
            first = len(seqs) - ctx.num_decode
            runs += [_moved(run, first) for run in self._runs]
        # Runs that follow another stand behind it.
        runs.sort(key=lambda run: run.first_page)
        return _Rows(
            table if table.stride(1) == 1 else table.contiguous(), lens_given, borders_given, runs
        )


@dataclass(frozen=True, slots=True)
class _Rows:
    """Sequences as the kernels get them: tables, lengths, borders of their queries, runs."""

    block_table: Tensor
    context_lens: Tensor
    borders: Tensor
    runs: list[SharedRun]


def _moved(run: SharedRun, first: int) -> SharedRun:
    """Return a run whose rows are counted from sequence `first` of a pass."""
    return SharedRun(tuple(first + row for row in run.rows), run.first_page, run.end_page)


def run_args(runs: Sequence[SharedRun]) -> tuple[Any, Any]:
    """Describe runs whose rows are sequences of a pass."""
    members = [row for run in runs for row in run.rows]
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
