"""Steps of answers as CUDA graphs: the last tokens of every sequence, forced or drafted ones too.

All sequences decode, some of them several tokens: attention reads the pages of each once for all
its rows, shared out over the device, and few rows go through the linear layers of decode steps.
Rows are rounded up to a bucket; sequences without tokens own those that pad it, and their keys go
to scratch. What follows the pass, logits and draws, is launched while it runs.

Nothing runs on the device while the first graph is launched, which takes the longer the more is in
it. So a pass is several graphs: one of a single layer, and behind it larger ones, each launched
while the one before runs.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from tokenbus.engine.interfaces import ForwardContext
from tokenbus.engine.models.decoder import Decoder, few_layers
from tokenbus.engine.sampling.plan import MAX_DRAFTED_ROWS, MAX_FORCED_ROWS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from tokenbus.engine.execution.rows import RowState
    from tokenbus.engine.interfaces import PagedModel
    from tokenbus.engine.kv_cache import KVCache
    from tokenbus.engine.scheduling.plan import PrefillChunk
    from tokenbus.engine.scheduling.sequence import Sequence

    # Takes what computes a pass on static memory and calls its argument where a graph ends and
    # another begins; returns what computes it again.
    CaptureParts = Callable[[Callable[[Callable[[], None]], None]], Callable[[], None]]

# Rows of a pass, and rows that one sequence has at most.
_ROW_BUCKETS = (4, 8, 16, 24, 32, 48, 64, 96, MAX_DRAFTED_ROWS)
_QUERY_BUCKETS = (4, 8, 16)
# Sequences whose graphs are captured at start where drafts may come; other graphs are on first use.
_PREPARED_SEQS = (1, 2, 4, 8)
# Layers behind which the next graph of a pass begins.
_CUTS = (1, 4, 16)
# Stands for the token that a row drew last, which is on the device alone.
_LAST_TOKEN = -1


class DraftShape(NamedTuple):
    """What a graph has room for: rows, sequences they belong to, and rows of one sequence."""

    num_rows: int
    num_seqs: int
    max_query_len: int

    def parts(self) -> list[int]:
        """Return how many values each of a pass's inputs has: see `DraftGraphs._fill`."""
        rows, seqs = self.num_rows, self.num_seqs
        return [rows, rows, rows, rows, seqs, seqs, seqs + 1]


def shape_of(query_lens: list[int]) -> DraftShape | None:
    """Return the smallest graph that holds sequences of so many rows, None if there is none."""
    total, most = sum(query_lens), max(query_lens)
    if total > MAX_DRAFTED_ROWS or most > _QUERY_BUCKETS[-1]:
        return None
    rows = _ROW_BUCKETS[bisect_left(_ROW_BUCKETS, total)]
    queries = _QUERY_BUCKETS[bisect_left(_QUERY_BUCKETS, most)]
    seqs = len(query_lens) + -(-(rows - total) // queries)
    return DraftShape(rows, max(2, 1 << (seqs - 1).bit_length()), queries)


class DraftGraphs:
    """Forward passes over sequences that take several tokens each, captured once each."""

    def __init__(
        self,
        model: PagedModel,
        kv: KVCache,
        rows: RowState,
        capture: CaptureParts,
        *,
        has_drafts: bool,
    ) -> None:
        """Serve models that decide nothing on the host while they run.

        Without drafts, with tokens forced by grammars alone, few rows at once: many sequences read
        what they share together, which these passes do not.
        """
        self._model, self._kv, self._rows, self._capture = model, kv, rows, capture
        self._prepared_seqs = _PREPARED_SEQS if has_drafts else _PREPARED_SEQS[:1]
        self._max_rows = MAX_DRAFTED_ROWS if has_drafts else MAX_FORCED_ROWS
        self._passes: dict[DraftShape, Callable[[], None]] = {}
        self._is_served = isinstance(model, Decoder)
        largest = DraftShape(MAX_DRAFTED_ROWS, MAX_DRAFTED_ROWS, _QUERY_BUCKETS[-1])
        # Written before each pass, in stream order, so that no pass reads the next one's.
        self._staged = torch.zeros(sum(largest.parts()), dtype=torch.int64, device=rows.device)
        width = model.tensors.embedding.shape[1] if isinstance(model, Decoder) else 0
        # One result for all graphs: each would keep the memory of its own.
        self._hidden = torch.empty(
            (MAX_DRAFTED_ROWS, width), dtype=torch.float32, device=rows.device
        )

    def shapes_to_prepare(self) -> list[DraftShape]:
        """Return the graphs to be captured at start, the largest first."""
        if not self._is_served:
            return []
        found = {
            shape_of([size] * num_seqs)
            for num_seqs in self._prepared_seqs
            for size in _QUERY_BUCKETS
        }
        return sorted((shape for shape in found if shape is not None), reverse=True)

    @torch.inference_mode()
    def prepare(self, shape: DraftShape) -> None:
        """Run few layers of a pass over scratch, so that all it needs is loaded, and capture it."""
        self._send(self._fill(shape, [], []), shape)
        with few_layers(self._model):
            self._compute(shape)
        self._captured(shape)

    def compile(self) -> None:
        """Take passes of all numbers of queries, for a compiler that computes nothing."""
        for shape in self.shapes_to_prepare():
            self._compute(shape)

    def run(self, chunks: list[PrefillChunk], seqs: list[Sequence]) -> tuple[Tensor, int] | None:
        """Take a few tokens of answers, and one token each of `seqs`, through the model.

        Returns: hidden states [T, H] and where the rows of `seqs` begin in them, which are valid
            until the next pass; None if a chunk is of a prompt or no graph holds so many.
        """
        if not self._is_served or not all(chunk.is_answer for chunk in chunks):
            return None
        shape = shape_of([*(chunk.num_tokens for chunk in chunks), *[1] * len(seqs)])
        if shape is None or shape.num_rows > self._max_rows:
            return None
        self._send(self._fill(shape, chunks, seqs), shape)
        self._captured(shape)()
        return self._hidden[: shape.num_rows], sum(chunk.num_tokens for chunk in chunks)

    def _captured(self, shape: DraftShape) -> Callable[[], None]:
        if shape not in self._passes:
            self._passes[shape] = self._capture(lambda cut: self._compute(shape, cut))
        return self._passes[shape]

    def _send(self, values: NDArray[np.int64], shape: DraftShape) -> None:
        self._rows.copy_into(self._staged[: sum(shape.parts())], values)

    def _fill(
        self, shape: DraftShape, chunks: list[PrefillChunk], seqs: list[Sequence]
    ) -> NDArray[np.int64]:
        """Write what a pass reads of each row: id, position, slot and whose row of tables it is.

        Then of each sequence its row of tables and its length, and last the borders of all. Padding
        belongs to the row whose pages are scratch.
        """
        size, scratch = self._kv.page_size, self._rows.padding_row
        ids, positions, slots, owners = (list[int]() for _ in range(4))
        table_rows, lens, borders = (list[int]() for _ in range(3))
        taken = [
            *((chunk.seq, chunk.token_ids(), chunk.start) for chunk in chunks),
            *((seq, (_LAST_TOKEN,), seq.num_computed - 1) for seq in seqs),
        ]
        for seq, token_ids, start in taken:
            places = range(start, start + len(token_ids))
            ids += token_ids
            positions += places
            slots += (seq.pages[place // size] * size + place % size for place in places)
            owners += [seq.row or 0] * len(places)
            table_rows.append(seq.row or 0)
            lens.append(places.stop)
            borders.append(len(ids))
        total, missing = len(ids), shape.num_seqs - len(taken)
        padding = [0] * (shape.num_rows - total)
        ends = (total + shape.max_query_len * number for number in range(1, missing + 1))
        return np.array(
            [
                *ids, *padding, *positions, *padding, *slots, *padding,
                *owners, *[scratch] * len(padding), *table_rows, *[scratch] * missing,
                *lens, *[0] * missing, 0, *borders, *[min(end, shape.num_rows) for end in ends],
            ],
            np.int64,
        )  # fmt: skip

    def _compute(self, shape: DraftShape, cut: Callable[[], None] | None = None) -> None:
        """Run the pass that the staged values describe; nothing is decided on the host."""
        rows, sizes = self._rows, shape.parts()
        ids, positions, slots, owners, table_rows, lens, borders = torch.split(
            self._staged[: sum(sizes)], sizes
        )
        ids = torch.where(ids < 0, rows.last_token.index_select(0, owners), ids)
        # Lengths are the device's business; their number is all that a graph knows of them.
        nominal = [1] * shape.num_seqs
        ctx = ForwardContext(
            kv=self._kv,
            positions=positions,
            slot_mapping=slots,
            block_table=rows.block_table.index_select(0, table_rows),
            context_lens=lens.to(torch.int32),
            cu_seqlens_q=borders.to(torch.int32),
            query_lens=nominal,
            context_lens_host=nominal,
            num_decode=shape.num_seqs,
            max_query_len=shape.max_query_len,
            after_layer=cut and (lambda number: cut() if number in _CUTS else None),
        )
        self._hidden[: shape.num_rows].copy_(self._model.forward(ids, ctx))
