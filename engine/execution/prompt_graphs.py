"""Steps with prompts as CUDA graphs: one forward pass per bucket of prompt tokens and rows.

A pass of few tokens is over on a GPU before its host has launched it: 28 layers are 300 launches,
20 ms where the GPU needs 5. Replayed, they are one. Chunks lie in front, their tokens rounded up to
a bucket; decoding rows follow, rounded up as well. What pads them reads and writes scratch alone.
Borders, lengths and pages come from one small tensor on the device, so that a graph serves all
chunks that fit it; what follows the pass, logits and draws, stays outside.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from tokenbus.engine.interfaces import ForwardContext
from tokenbus.engine.models.decoder import Decoder, few_layers
from tokenbus.engine.models.linear_weight import Fp8BlockWeight, Fp8Weight

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from tokenbus.engine.execution.rows import RowState
    from tokenbus.engine.interfaces import PagedModel
    from tokenbus.engine.kv_cache import KVCache
    from tokenbus.engine.scheduling.plan import PrefillChunk
    from tokenbus.engine.scheduling.prefix_grouping import PrefixSharing
    from tokenbus.engine.scheduling.sequence import Sequence

    # Takes what computes a pass on static memory, returns what computes it again.
    Capture = Callable[[Callable[[], None]], Callable[[], None]]

# What launching a layer takes the host, and what the products of a pass reach: measured on an H200
# beside a Xeon, eagerly launched passes of Qwen3-0.6B and of an 8B Llama. Layers in FP8 have two
# launches more, which round their rows, and describe their tiles to the copy engine.
_LAUNCH_S, _FLOPS_PER_S = 0.75e-3, 4e14
_FP8_LAUNCH_S, _FP8_FLOPS_PER_S = 0.9e-3, 8e14
# Most prompts of a pass: one per `_TOKENS_PER_SEQ` of its tokens, within these bounds. Few
# long ones have graphs of their own: what attends them is chosen by the tokens of one on average.
_MIN_SEQS, _MAX_SEQS = 8, 256
_TOKENS_PER_SEQ, _LONG_TOKENS_PER_SEQ = 16, 1024


class PassShape(NamedTuple):
    """What a graph has room for: prompt tokens, the prompts they belong to, decoding rows."""

    num_tokens: int
    num_seqs: int
    num_rows: int

    def parts(self) -> list[int]:
        """Return how many values each of a pass's inputs has: see `PromptGraphs._fill`."""
        total, seqs = self.num_tokens + self.num_rows, self.num_seqs + self.num_rows
        return [self.num_tokens, total, total, seqs, seqs, seqs + 1]


def token_buckets(most: int) -> list[int]:
    """Prompt tokens that get a graph: 16, 32, then four sizes per octave until one holds `most`."""
    sizes = [16, 32]
    while sizes[-1] < most:
        octave = sizes[-1] * 2 if len(sizes) == 2 else sizes[-4] * 2
        sizes += [octave, octave * 5 // 4, octave * 3 // 2, octave * 7 // 4]
    return sizes[: bisect_left(sizes, most) + 1]


def row_buckets(max_num_seqs: int) -> list[int]:
    """Decoding rows that get a graph: few sizes, for they weigh little beside the prompts.

    A lone sequence has none beside it.
    """
    if max_num_seqs == 1:
        return [0]
    sizes = [size for size in (0, 16, 64, 128) if size < max_num_seqs]
    return [*sizes, *range(256, max_num_seqs, 128), max_num_seqs]


def replayed_tokens(model: PagedModel) -> int:
    """Return up to how many tokens a pass is sooner done than launched (0: never replayed).

    Models that run in transformers' code decide things on the host while they run.
    """
    if not isinstance(model, Decoder) or not model.tensors.layers:
        return 0
    layers = model.tensors.layers
    weights = max(layer.weights_per_token() for layer in layers)
    flops = _LAUNCH_S * _FLOPS_PER_S
    if all(isinstance(linear.weight, Fp8Weight | Fp8BlockWeight) for linear in layers[0].linears()):
        flops = _FP8_LAUNCH_S * _FP8_FLOPS_PER_S
    return int(flops / (2 * weights))


def _width(model: PagedModel) -> int:
    return model.tensors.embedding.shape[1] if isinstance(model, Decoder) else 0


class PromptGraphs:
    """Forward passes over chunks and the decoding rows behind them, captured once each."""

    def __init__(
        self,
        model: PagedModel,
        kv: KVCache,
        rows: RowState,
        max_tokens: int,
        capture: Capture,
        *,
        sharing: PrefixSharing | None = None,
    ) -> None:
        """Serve passes of up to `max_tokens` prompt tokens, those that gain by it."""
        self._model, self._kv, self._rows = model, kv, rows
        self._capture, self._sharing = capture, sharing
        self._limit = replayed_tokens(model)
        self._token_buckets = [size for size in token_buckets(max_tokens) if size <= self._limit]
        self._row_buckets = row_buckets(rows.padding_row)
        self._passes: dict[tuple[PassShape, bool], Callable[[], None]] = {}
        largest = PassShape(max([0, *self._token_buckets]), _MAX_SEQS, rows.padding_row)
        # Written before each pass, in stream order, so that no pass reads the next one's.
        self._staged = torch.zeros(sum(largest.parts()), dtype=torch.int64, device=rows.device)
        # One result for all graphs: each would keep the memory of its own.
        self._hidden = torch.empty(
            (min(self._limit, largest.num_tokens + largest.num_rows), _width(model)),
            dtype=torch.float32,
            device=rows.device,
        )

    def shape(self, num_tokens: int, num_seqs: int, num_rows: int) -> PassShape | None:
        """Return the smallest graph that holds so many, None if launching is as fast."""
        wanted = max(num_tokens, (num_seqs - _MIN_SEQS) * _TOKENS_PER_SEQ)
        place = bisect_left(self._token_buckets, wanted)
        if place == len(self._token_buckets) or num_seqs > _MAX_SEQS:
            return None
        tokens = self._token_buckets[place]
        rows = self._row_buckets[bisect_left(self._row_buckets, num_rows)]
        if tokens + rows > self._limit:
            return None
        seqs = tokens // _LONG_TOKENS_PER_SEQ
        if seqs < num_seqs:
            seqs = min(_MIN_SEQS + tokens // _TOKENS_PER_SEQ, _MAX_SEQS)
        return PassShape(tokens, seqs, rows)

    def shapes_to_prepare(self, most: int) -> list[PassShape]:
        """Return the largest graph, then those of up to `most` tokens that nobody decodes beside.

        Graphs share their memory, which the largest one lays out for all: captured from small to
        large, each would need more than the ones before it left behind.
        """
        shapes = self._shapes()
        by_size = sorted(shapes, key=lambda shape: (shape.num_tokens + shape.num_rows, shape))
        lone = (shape for shape in shapes if shape.num_tokens <= most and not shape.num_rows)
        return [*by_size[-1:], *lone]

    def other_shapes(self, most: int) -> list[PassShape]:
        """Return all graphs that `shapes_to_prepare` leaves out, those of few rows first."""
        prepared = set(self.shapes_to_prepare(most))
        return sorted(set(self._shapes()) - prepared, key=lambda shape: (shape.num_rows, shape))

    @torch.inference_mode()
    def prepare(self, shape: PassShape) -> None:
        """Capture a pass before it is needed, over scratch.

        There is time to run it once before through few layers, so that all it needs is loaded.
        """
        self._send(shape, [], [])
        with few_layers(self._model):
            self._compute(shape)
        self._captured(shape)

    def capture(self, shape: PassShape) -> None:
        """Capture a pass whose kernels are loaded, without running it."""
        self._captured(shape)

    def run(self, chunks: list[PrefillChunk], seqs: list[Sequence]) -> tuple[Tensor, int] | None:
        """Take chunks, and one token each of `seqs` behind them, through the model.

        Returns: hidden states [T, H] and where the rows of `seqs` begin in them, which are valid
            until the next pass; None if no graph pays for so many.
        """
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        shape = self.shape(num_tokens, len(chunks), len(seqs))
        if shape is None:
            return None
        self._send(shape, chunks, seqs)
        self._captured(shape)()
        return self._hidden[: shape.num_tokens + shape.num_rows], shape.num_tokens

    def _shapes(self) -> list[PassShape]:
        """Return every graph that pays: of few long prompts, then of as many as there may be."""
        shapes = (
            self.shape(tokens, num_seqs, rows)
            for tokens in self._token_buckets
            for rows in self._row_buckets
            for num_seqs in (1, tokens // _LONG_TOKENS_PER_SEQ + 1)
        )
        return list(dict.fromkeys(shape for shape in shapes if shape is not None))

    def _captured(self, shape: PassShape) -> Callable[[], None]:
        has_runs = self._sharing is not None and self._sharing.has_runs
        key = (shape, has_runs and shape.num_rows > 0)
        if key not in self._passes:
            self._passes[key] = self._capture(lambda: self._compute(shape))
        return self._passes[key]

    def _send(self, shape: PassShape, chunks: list[PrefillChunk], seqs: list[Sequence]) -> None:
        with self._rows.writing(self._staged[: sum(shape.parts())]) as values:
            self._fill(values, shape, chunks, seqs)

    def _fill(
        self,
        values: NDArray[np.int64],
        shape: PassShape,
        chunks: list[PrefillChunk],
        seqs: list[Sequence],
    ) -> None:
        """Write what a pass reads: ids, positions, owning rows, then per sequence row and length.

        Sequences have borders last. Padding belongs to the row whose pages are scratch; prompts
        that are none end where the last one ends, and rows that are none have no tokens.
        """
        ends = accumulate(shape.parts())
        parts = (values[end - num : end] for num, end in zip(shape.parts(), ends, strict=True))
        ids, positions, owners, table_rows, lens, borders = parts
        first = borders[0] = 0
        for idx, chunk in enumerate(chunks):
            end = first + chunk.num_tokens
            ids[first:end] = chunk.token_ids()
            positions[first:end] = np.arange(chunk.start, chunk.length)
            owners[first:end] = table_rows[idx] = chunk.seq.row or 0
            lens[idx] = chunk.length
            borders[idx + 1] = first = end
        # What an earlier pass has left behind these.
        ids[first:] = positions[first:] = lens[len(chunks) :] = 0
        owners[first:] = table_rows[len(chunks) :] = self._rows.padding_row
        borders[len(chunks) + 1 : shape.num_seqs + 1] = first
        borders[shape.num_seqs + 1 :] = np.arange(1, shape.num_rows + 1) + shape.num_tokens
        if seqs:
            decoding = np.array([(seq.row or 0, seq.num_computed) for seq in seqs], np.int64)
            rows = slice(shape.num_tokens, shape.num_tokens + len(seqs))
            owners[rows], positions[rows] = decoding[:, 0], decoding[:, 1] - 1
            rows = slice(shape.num_seqs, shape.num_seqs + len(seqs))
            table_rows[rows], lens[rows] = decoding[:, 0], decoding[:, 1]

    def _compute(self, shape: PassShape) -> None:
        """Run the pass that the staged values describe; nothing is decided on the host."""
        rows, page_size = self._rows, self._kv.page_size
        sizes = shape.parts()
        ids, positions, owners, table_rows, lens, borders = torch.split(
            self._staged[: sum(sizes)], sizes
        )
        if shape.num_rows:
            drawn = rows.last_token.index_select(0, owners[shape.num_tokens :])
            ids = torch.cat((ids, drawn))
        page_ids = rows.block_table[owners, positions // page_size].to(torch.int64)
        # Lengths are the device's business; their number is all that a graph knows of them.
        nominal = [1] * (shape.num_seqs + shape.num_rows)
        ctx = ForwardContext(
            kv=self._kv,
            positions=positions,
            slot_mapping=page_ids * page_size + positions % page_size,
            block_table=rows.block_table.index_select(0, table_rows),
            context_lens=lens.to(torch.int32),
            cu_seqlens_q=borders.to(torch.int32),
            query_lens=nominal,
            context_lens_host=nominal,
            num_decode=shape.num_rows,
        )
        self._hidden[: len(ids)].copy_(self._model.forward(ids, ctx))
