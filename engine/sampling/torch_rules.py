"""The rules on logits in plain torch, with their tables: what a CPU runs, and the GPU's twin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.sampling.penalties import PenaltyCounts
from tokenbus.engine.sampling.plan import Feature
from tokenbus.engine.sampling.token_rules import BadWords, LogitBias, apply_min_tokens_
from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from tokenbus.engine.sampling.plan import SamplingPlan
    from tokenbus.engine.sampling.row_table import RowTable

_NEUTRAL = SamplingParams(temperature=0.0)


class TorchRules:
    """Penalties, biases, bad words and min_tokens of every row; tables come with first use."""

    def __init__(
        self, table: RowTable, num_rows: int, vocab_size: int, device: torch.device
    ) -> None:
        self._table = table
        self._num_rows = num_rows
        self._device = device
        self._penalties = PenaltyCounts(num_rows, vocab_size, device)
        self._logit_bias: LogitBias | None = None
        self._bad_words: BadWords | None = None

    def write(
        self,
        row: int,
        params: SamplingParams,
        plan: SamplingPlan,
        previous: SamplingPlan,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
    ) -> None:
        """Set the rules of a row, and take back those that its plan had before."""
        if plan.has(Feature.PENALTIES):
            self._penalties.write(row, prompt_ids, output_ids)
        if plan.has(Feature.BIAS):
            self._logit_bias = self._logit_bias or LogitBias(self._num_rows, self._device)
            self._logit_bias.write(row, params)
        elif self._logit_bias is not None and previous.has(Feature.BIAS):
            self._logit_bias.write(row, _NEUTRAL)
        if plan.has(Feature.BAD_WORDS):
            self._bad_words = self._bad_words or BadWords(self._num_rows, self._device)
            self._bad_words.write(row, params, prompt_ids, output_ids)
        elif self._bad_words is not None and previous.has(Feature.BAD_WORDS):
            self._bad_words.write(row, _NEUTRAL, (), ())

    def apply_(self, logits: Tensor, rows: Tensor, positions: Tensor, plan: SamplingPlan) -> None:
        """Carry out the rules of a plan in place; logits [M, V], rows and positions [M] int64."""
        scalars = self._table.gather(rows)
        if plan.has(Feature.PENALTIES):
            self._penalties.apply_(logits, rows, scalars)
        if plan.has(Feature.BIAS) and self._logit_bias is not None:
            self._logit_bias.apply_(logits, rows)
        if plan.has(Feature.BAD_WORDS) and self._bad_words is not None:
            self._bad_words.apply_(logits, rows)
        if plan.has(Feature.MIN_TOKENS):
            stop_ids = self._table.stop_ids[rows]
            apply_min_tokens_(logits, stop_ids, positions, scalars.min_tokens)

    def record(self, rows: Tensor, token_ids: Tensor, plan: SamplingPlan) -> None:
        """Enter one token per row; rows and token_ids [M] int64."""
        if plan.has(Feature.PENALTIES):
            self._penalties.record(rows, token_ids)
        if plan.has(Feature.BAD_WORDS) and self._bad_words is not None:
            self._bad_words.record(rows, token_ids)
