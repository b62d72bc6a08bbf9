"""Log-probabilities of the raw distribution, before any rule or filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenbus.engine.types import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

# Known tokens that are scored at once: bounds their logits to 256 rows of the vocabulary.
SCORED_ROWS = 256


@dataclass(frozen=True, slots=True)
class RawLogprobs:
    """Log-probabilities of M positions, on the device of the logits.

    token_ids, ranks: [M] int64 (rank 1 = most probable, ties share it); logprobs: [M] float32.
    top_ids: [M, K] int64 and top_logprobs: [M, K] float32, most probable first.
    """

    token_ids: Tensor
    logprobs: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    def leave(self, num_rows: int) -> RawLogprobs:
        """Start to copy the first rows to the host."""
        rows = self.part(slice(num_rows))
        return RawLogprobs(
            rows.token_ids.to("cpu", non_blocking=True),
            rows.logprobs.to("cpu", non_blocking=True),
            rows.ranks.to("cpu", non_blocking=True),
            rows.top_ids.to("cpu", non_blocking=True),
            rows.top_logprobs.to("cpu", non_blocking=True),
        )

    def part(self, rows: slice) -> RawLogprobs:
        """Return those of some rows."""
        return RawLogprobs(
            self.token_ids[rows],
            self.logprobs[rows],
            self.ranks[rows],
            self.top_ids[rows],
            self.top_logprobs[rows],
        )

    def to_host(self, num_top: Sequence[int | None]) -> list[TokenLogprobs | None]:
        """Return one entry per position with its own number of alternatives; None stays None."""
        ids, logprobs = self.token_ids.tolist(), self.logprobs.tolist()
        ranks = self.ranks.tolist()
        top_ids, top_logprobs = self.top_ids.tolist(), self.top_logprobs.tolist()
        return [
            None
            if count is None
            else TokenLogprobs(
                token_id=ids[i],
                logprob=logprobs[i],
                rank=ranks[i],
                top=tuple(zip(top_ids[i][:count], top_logprobs[i][:count], strict=True)),
            )
            for i, count in enumerate(num_top)
        ]


def raw_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> RawLogprobs:
    """Score given tokens under the raw distribution; serves outputs and prompts alike.

    For a prompt, row t of the logits predicts token t + 1: pass logits[:-1] and ids[1:].

    Args:
        logits: [M, V] float32; token_ids: [M] int64; num_top: alternatives per position, K.
    """
    normaliser = logits.logsumexp(-1)
    chosen = logits.gather(-1, token_ids.unsqueeze(-1))
    top = torch.topk(logits, min(num_top, logits.shape[-1]), dim=-1)
    return RawLogprobs(
        token_ids=token_ids,
        logprobs=chosen.squeeze(-1) - normaliser,
        ranks=(logits > chosen).sum(-1) + 1,
        top_ids=top.indices,
        top_logprobs=top.values - normaliser.unsqueeze(-1),
    )
