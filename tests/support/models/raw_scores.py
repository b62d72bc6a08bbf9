"""What transformers says of every token of an answer, in fp32: the measure of logprobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    # Logprob, rank, alternatives.
    Entry = tuple[float, int, Sequence[Sequence[Any]]]

TOLERANCE = 1e-4


class RawScores:
    """The log-softmax of a model in `folder`, before any rule or filter."""

    def __init__(self, folder: str | Path) -> None:
        auto: Any = AutoModelForCausalLM
        loaded = auto.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        self._model = loaded.requires_grad_(False).eval()

    def check(
        self,
        prompt_ids: Sequence[int],
        ids: Sequence[int],
        entries: Sequence[Entry],
        num_top: int,
    ) -> None:
        """Check that each id has its entry: logprob, rank and `num_top` alternatives."""
        check_entries(self._model, prompt_ids, ids, entries, num_top)


def check_entries(
    model: Any,
    prompt_ids: Sequence[int],
    ids: Sequence[int],
    entries: Sequence[Entry],
    num_top: int,
) -> None:
    """Check that each id has the entry that `model` gives it."""
    assert len(entries) == len(ids)
    if not ids:
        return
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt_ids, *ids]])).logits[0]
    rows = logits[len(prompt_ids) - 1 : -1].float().log_softmax(-1)
    for token_id, (logprob, rank, top), row in zip(ids, entries, rows, strict=True):
        assert abs(logprob - row[token_id].item()) < TOLERANCE
        # What lies nearer than that may stand on either side.
        above = int((row > logprob + TOLERANCE).sum()), int((row > logprob - TOLERANCE).sum())
        assert above[0] < rank <= above[1]
        assert len(top) == num_top
        for (other_id, other), best in zip(top, row.topk(num_top).values, strict=True):
            assert abs(other - best.item()) < TOLERANCE
            assert abs(other - row[other_id].item()) < TOLERANCE
