"""A runner whose passes are those of captured graphs, computed anew each time on any device."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tokenbus.engine.execution.draft_graphs import DraftGraphs
from tokenbus.engine.execution.prompt_graphs import PromptGraphs
from tokenbus.engine.execution.runner import Runner

if TYPE_CHECKING:
    from torch import Tensor


class PaddedRunner(Runner):
    """Pads prompts, drafts and rows to their buckets in every `turn`-th pass with any of them."""

    turn = 1

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.prompts = PromptGraphs(self.model, self.kv, self.rows, 4096, lambda compute: compute)
        self.drafts = DraftGraphs(
            self.model,
            self.kv,
            self.rows,
            lambda compute: partial(compute, lambda: None),
            has_drafts=True,
        )
        self.num_passes = 0

    def _pass(self, chunks: list[Any], seqs: list[Any]) -> tuple[Tensor, int]:
        self.num_passes += 1
        if self.num_passes % self.turn:
            return super()._pass(chunks, seqs)
        padded = self.drafts.run(chunks, seqs) or self.prompts.run(chunks, seqs)
        return padded or super()._pass(chunks, seqs)
