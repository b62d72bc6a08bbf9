"""Paged attention on a GPU: one kernel for decode, one for prompts."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from tokenbus.kernels.attention.paged_decode import QueryRows, paged_decode
from tokenbus.kernels.attention.paged_prefill import paged_prefill
from tokenbus.kernels.attention.prefix_groups import MIN_SAVED_TOKENS, PrefixGroup, PrefixGroups
from tokenbus.kernels.attention.work_list import DecodeWork
from tokenbus.kernels.launch import num_processors
from tokenbus.kernels.quantize import quantize_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.kv_cache import AttentionSpec
    from tokenbus.engine.scheduling.prefix_grouping import SharedRun

# Page reads saved per layer that pay for the merge of one more partial result per row, from runs of
# 16 and of 8 pages on: the shorter a run, the more of its time is merging. Shorter ones never do.
_BREAK_EVEN_PAGES = ((16, 64), (8, 1000))

_Shape = tuple[int, int, int, int | None]


class TritonAttention:
    """PagedAttention over the Triton kernels.

    Decode reads a work list that is built on the device once per pass and shape; its buffers are
    static, so that graphs of all batch sizes share them. Shared runs are read once for their rows
    in every layer without a sliding window, if together they save `min_saved_tokens`.
    """

    def __init__(
        self, max_rows: int, min_saved_tokens: int = MIN_SAVED_TOKENS, *, grouping: bool = True
    ) -> None:
        """Serve batches of up to `max_rows` sequences; without `grouping` kernels know no runs."""
        self.min_saved_tokens = min_saved_tokens
        self._grouping = grouping
        self._max_rows = max_rows
        self._works: dict[_Shape, DecodeWork] = {}
        self._runs: Sequence[SharedRun] = ()
        self._assumes_runs = False

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, ctx: ForwardContext
    ) -> Tensor:
        """Store k, v of this pass in their slots, then attend causally over the pages."""
        page_size = ctx.kv.page_size
        place = ctx.slot_mapping // page_size, ctx.slot_mapping % page_size
        scales = ctx.kv.scales(spec.layer_idx)
        k_pages, v_pages = ctx.kv.k[spec.layer_idx], ctx.kv.v[spec.layer_idx]
        by_token = (0, 2, 1, 3) if scales[1] is None else (0, 3, 1, 2)
        pages = k_pages.transpose(1, 2), v_pages.permute(by_token)
        for value, page, scale in zip((k, v), pages, scales, strict=True):
            _write(value, page, scale, place)
        return self.read(q.contiguous(), spec, ctx)

    def read(
        self, q: Tensor, spec: AttentionSpec, ctx: ForwardContext, fresh: Tensor | None = None
    ) -> Tensor:
        """Attend over pages that hold this pass's k and v already; q: [T, Hq, D], contiguous.

        fresh: this pass's keys and values for prompts over FP8 pages, see `paged_prefill`.
        """
        pages = ctx.kv.k[spec.layer_idx], ctx.kv.v[spec.layer_idx]
        k_scales, v_scales = ctx.kv.scales(spec.layer_idx)
        out = torch.empty_like(q)
        num_tokens = 0 if ctx.is_decode else q.shape[0] - ctx.num_decode
        if num_tokens:
            num_seqs = len(ctx.query_lens) - ctx.num_decode
            paged_prefill(
                q[:num_tokens],
                *pages,
                ctx.block_table[:num_seqs],
                ctx.context_lens[:num_seqs],
                ctx.cu_seqlens_q[: num_seqs + 1],
                scale=spec.scale,
                sliding_window=spec.sliding_window,
                softcap=spec.softcap,
                k_scales=k_scales,
                v_scales=v_scales,
                fresh=None if fresh is None else fresh[:num_tokens],
                reads_cache=ctx.reads_cache,
                out=out[:num_tokens],
            )
        if ctx.num_decode:
            table, lens = _decode_tables(ctx)
            work, listed = self._work(q, lens, spec, ctx)
            paged_decode(
                q[num_tokens:],
                *pages,
                table,
                lens,
                work,
                scale=spec.scale,
                softcap=spec.softcap,
                listed=listed,
                k_scales=k_scales,
                v_scales=v_scales,
                queries=_queries(ctx),
                out=out[num_tokens:],
            )
        return out

    def assign_runs(self, runs: Sequence[SharedRun]) -> None:
        """Read these runs once for all their rows, from the next decode pass on."""
        if runs is self._runs:
            return
        self._runs = runs
        for work in self._works.values():
            if work.groups is not None:
                work.groups.assign(_groups_of(runs))

    @property
    def splits_answers(self) -> bool:
        """A chunk reads pages where they lie, once for all its tokens."""
        return False

    @property
    def has_runs(self) -> bool:
        """Whether rows of the next decode pass are read together, which takes another kernel."""
        return any(work.active_groups is not None for work in self._works.values())

    @contextmanager
    def assuming_runs(self) -> Iterator[None]:
        """Launch kernels for shared runs inside, whether there are runs or not."""
        self._assume_runs(True)
        try:
            yield
        finally:
            self._assume_runs(False)

    def _assume_runs(self, assumed: bool) -> None:
        # Work lists that the passes inside allocate have them too.
        self._assumes_runs = assumed
        for work in self._works.values():
            work.assumes_runs = assumed

    def pays(self, num_rows: int, num_pages: int) -> bool:
        """Tell whether reading a run together beats reading it per row."""
        saved_pages = (num_rows - 1) * num_pages
        return any(num_pages >= run and saved_pages >= least for run, least in _BREAK_EVEN_PAGES)

    def _work(
        self, q: Tensor, lens: Tensor, spec: AttentionSpec, ctx: ForwardContext
    ) -> tuple[DecodeWork, bool]:
        """Return the work list of this pass for layers shaped like `spec`, built on first use.

        The second value tells whether a layer of this pass has read the list already.
        """
        shape = (spec.num_heads, spec.num_kv_heads, spec.head_dim, spec.sliding_window)
        key = ("decode_work", shape)
        listed = key in ctx.memo
        if not listed:
            if shape not in self._works:
                self._works[shape] = self._allocate(q, spec, ctx)
            self._works[shape].build(lens, ctx.max_query_len)
            ctx.memo[key] = self._works[shape]
        work: DecodeWork = ctx.memo[key]
        return work, listed

    def _allocate(self, q: Tensor, spec: AttentionSpec, ctx: ForwardContext) -> DecodeWork:
        groups = None
        if self._grouping and spec.sliding_window is None:
            groups = PrefixGroups(
                max_rows=self._max_rows,
                page_size=ctx.kv.page_size,
                num_heads=spec.num_heads,
                num_kv_heads=spec.num_kv_heads,
                device=q.device,
                num_processors=num_processors(q.device),
                min_saved_tokens=self.min_saved_tokens,
            )
            groups.assign(_groups_of(self._runs))
        work = DecodeWork(
            max_rows=self._max_rows,
            max_pages=ctx.kv.num_pages,
            page_size=ctx.kv.page_size,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            device=q.device,
            sliding_window=spec.sliding_window,
            groups=groups,
        )
        work.assumes_runs = self._assumes_runs
        return work


def _write(
    value: Tensor, pages: Tensor, scales: Tensor | None, place: tuple[Tensor, Tensor]
) -> None:
    """Write value [T, Hkv, D] to pages [P, S, Hkv, D] at (page, offset), rounded if with scales."""
    if scales is None:
        pages[place] = value
        return
    rows = quantize_rows(value.reshape(-1, value.shape[-1]))
    # Torch moves bytes, whatever they stand for.
    pages.view(torch.uint8)[place] = rows.values.view(torch.uint8).view(value.shape)
    scales.transpose(1, 2)[place] = rows.scales.view(value.shape[:-1])


def _groups_of(runs: Sequence[SharedRun]) -> tuple[PrefixGroup, ...]:
    return tuple(PrefixGroup(run.rows, run.first_page, run.end_page) for run in runs)


def _queries(ctx: ForwardContext) -> QueryRows | None:
    """Return where the queries of decoding sequences stand, None if each has one."""
    return QueryRows(ctx.cu_seqlens_q, ctx.max_query_len) if ctx.max_query_len > 1 else None


def _decode_tables(ctx: ForwardContext) -> tuple[Tensor, Tensor]:
    """Return block table and lengths of the decoding sequences, made once per pass."""
    if ctx.is_decode:
        return ctx.block_table, ctx.context_lens
    if "decode_tables" not in ctx.memo:
        first = len(ctx.query_lens) - ctx.num_decode
        # Copies begin at an aligned address, as the tables of a whole batch do; kernels are
        # compiled apart for others.
        ctx.memo["decode_tables"] = tuple(
            tensor[first:].clone() for tensor in (ctx.block_table, ctx.context_lens)
        )
    tables: tuple[Tensor, Tensor] = ctx.memo["decode_tables"]
    return tables
