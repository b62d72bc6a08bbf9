"""Interfaces of the forward pass: what it knows of its tokens (positions, pages, lengths)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from torch import Tensor

    from tokenbus.engine.kv_cache import AttentionSpec, KVCache

_Layer = TypeVar("_Layer")


@dataclass(slots=True)
class ForwardContext:
    """The batch of one forward pass: N sequences, T tokens flattened in sequence order.

    positions: [T] int64, position of each token in its sequence.
    slot_mapping: [T] int64, page_id * page_size + offset of each token; page 0 is scratch.
    block_table: [N, max_pages] int32; entries past a sequence's last page are never read.
    context_lens: [N] int32, tokens of the sequence after this pass, its queries included.
    cu_seqlens_q: [N + 1] int32, offsets of each sequence's tokens in T.
    query_lens, context_lens_host: the same lengths as Python ints.
    num_decode: how many of the last sequences decode: one query token each, and the rows that
        shared runs speak of, counted from the first of them.
    max_query_len: query tokens that a decoding sequence has at most: more than one where all
        sequences decode, and some have drafts.
    reads_cache: whether prompts have tokens of earlier passes; True where that is not known.
    memo: what backends and models derive once per pass and reuse in every layer.
    after_layer: called behind each layer, by the layer's number from 1 on, where someone records
        the pass in parts.
    """

    kv: KVCache
    positions: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    context_lens: Tensor
    cu_seqlens_q: Tensor
    query_lens: list[int]
    context_lens_host: list[int]
    num_decode: int = 0
    max_query_len: int = 1
    reads_cache: bool = True
    memo: dict[Hashable, Any] = field(default_factory=dict)
    after_layer: Callable[[int], None] | None = None

    def each(self, layers: Iterable[_Layer]) -> Iterator[_Layer]:
        """Yield the layers of the model in their order; the pass goes through them in a loop."""
        for number, layer in enumerate(layers, 1):
            yield layer
            if self.after_layer is not None:
                self.after_layer(number)

    @property
    def is_decode(self) -> bool:
        """True if every sequence decodes."""
        return self.num_decode == len(self.query_lens)


class PagedAttention(Protocol):
    """Attention over pages: writes K and V into them and attends over what they hold."""

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, ctx: ForwardContext
    ) -> Tensor:
        """Store k, v of this pass in their slots, then attend causally over the pages.

        Args:
            q: [T, Hq, D], rotated; k, v: [T, Hkv, D], k rotated; all in the cache's dtype.
            spec: the layer; ctx: the batch.
        Returns: [T, Hq, D], dtype of q; softmax and sums in fp32.
        """
        ...


class PagedModel(Protocol):
    """A causal LM over pages, whatever its family."""

    vocab_size: int
    attention_specs: list[AttentionSpec]

    def forward(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """token_ids: [T] int64 -> hidden states [T, H] before the final norm."""
        ...

    def logits(self, hidden: Tensor, *, exact: bool = True) -> Tensor:
        """hidden: [M, H], chosen rows only -> [M, V], final norm and scaling applied.

        Float32; without `exact` possibly the model's own dtype, which loses nothing if the logits
        were computed in it and saves a pass over them.
        """
        ...
