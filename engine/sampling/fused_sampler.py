"""Rules, filters, draw and scores on a GPU: one pass over logits in any dtype, no sort."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenbus.engine.chat.requests.bounds import MAX_BAD_WORD_LENGTH, MAX_BAD_WORDS, MAX_LOGIT_BIAS
from tokenbus.engine.sampling.logprobs import SCORED_ROWS, RawLogprobs
from tokenbus.engine.sampling.plan import (
    FILTERS,
    LOGIT_RULES,
    MAX_DRAFTED_ROWS,
    Feature,
    SamplingPlan,
)
from tokenbus.engine.sampling.row_table import write_row
from tokenbus.kernels.sampling.draw_rows import draw_rows, reduce_rows
from tokenbus.kernels.sampling.rule_tables import (
    ANY_TOKEN,
    NO_TOKEN,
    RuleTables,
    record_tokens,
    write_rows,
)
from tokenbus.kernels.sampling.score_rows import score_rows
from tokenbus.kernels.sampling.workspace import RowColumns, SamplingWorkspace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from tokenbus.engine.sampling.row_table import RowTable
    from tokenbus.engine.types import SamplingParams


# Tables of rules that take no more of the device's memory get it while the engine starts.
_SHARE_AHEAD = 0.01


class _NewRow(NamedTuple):
    """What a row has said so far, int32, to be sent with the next `flush`."""

    prompt_ids: NDArray[np.int32]
    output_ids: NDArray[np.int32]


class FusedSampler:
    """What `SamplingState` does on a GPU, with its tables and scratch memory.

    Counts of said tokens live on the device: a new row sends the ids that it begins with, in one
    copy with those of other rows, and what is drawn is added there. Tables take 5 bytes per row
    and token of the vocabulary, adjusted logits 4 more; they come with the first rule or
    captured mask, or with `prepare_rules`.

    Draws read logits of one dtype, that of the rehearsal: exact ones are rounded to it, so that a
    row draws the same whether a neighbour asks for log-probabilities or not.
    """

    def __init__(
        self, table: RowTable, max_rows: int, vocab_size: int, device: torch.device
    ) -> None:
        self._table = table
        self._columns = RowColumns(table.floats, table.ints, table.stop_ids)
        self._max_draws = max(max_rows, SCORED_ROWS, MAX_DRAFTED_ROWS)
        self._device = device
        self._workspace = SamplingWorkspace(self._max_draws, vocab_size, device)
        self._rules = RuleTables(
            max_rows + 1,
            vocab_size,
            device,
            max_biases=MAX_LOGIT_BIAS,
            max_words=MAX_BAD_WORDS,
            max_word_length=MAX_BAD_WORD_LENGTH,
        )
        self._adjusted: Tensor | None = None
        self._dtype: torch.dtype | None = None
        self._new_rows: dict[int, _NewRow] = {}

    def write(
        self,
        row: int,
        params: SamplingParams,
        plan: SamplingPlan,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
    ) -> None:
        """Set the rules of a row; those that it does not have are not read."""
        if not plan.has(LOGIT_RULES):
            return
        self.allocate_rules()
        if plan.has(Feature.PENALTIES):
            self._new_rows[row] = _NewRow(
                np.asarray(prompt_ids, np.int32), np.asarray(output_ids, np.int32)
            )
        if plan.has(Feature.BIAS):
            num = len(params.logit_bias)
            ids = torch.tensor(list(params.logit_bias.keys()), dtype=torch.int32)
            values = torch.tensor(list(params.logit_bias.values()), dtype=torch.float32)
            write_row(self._rules.bias_ids[:, :num], row, ids)
            write_row(self._rules.biases[:, :num], row, values)
        if plan.has(Feature.BAD_WORDS):
            self._write_words(row, params.bad_words, prompt_ids, output_ids)

    def prepare_rules(self) -> bool:
        """Give the tables their memory if it is little; tell whether they have it."""
        num_bytes = self._max_draws * self._rules.vocab_size * 9
        is_little = True
        if self._device.type == "cuda":
            _, total_bytes = torch.cuda.mem_get_info(self._device)
            is_little = num_bytes <= total_bytes * _SHARE_AHEAD
        if is_little:
            self.allocate_rules()
        return self._adjusted is not None

    def allocate_rules(self) -> None:
        """Give tables and adjusted logits their memory, before a graph is captured over them."""
        if self._adjusted is None:
            self._rules.allocate()
            shape = (self._max_draws, self._rules.vocab_size)
            self._adjusted = torch.empty(shape, dtype=torch.float32, device=self._device)

    def flush(self) -> None:
        """Send new rows to the device."""
        if not self._new_rows:
            return
        header = np.empty((len(self._new_rows), 4), np.int32)
        parts: list[NDArray[np.int32]] = []
        first = 0
        for place, (row, said) in enumerate(self._new_rows.items()):
            header[place] = row, first, len(said.prompt_ids), len(said.output_ids)
            parts += said
            first += len(said.prompt_ids) + len(said.output_ids)
        self._new_rows.clear()
        sent = torch.from_numpy(np.concatenate([header.reshape(-1), *parts]))
        if self._device.type != "cpu":
            sent = sent.pin_memory().to(self._device, non_blocking=True)
        write_rows(self._rules, sent[: header.size].view(-1, 4), sent[header.size :])

    def draw(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        plan: SamplingPlan,
        bitmask: Tensor | None,
    ) -> Tensor:
        """Return token ids [M] int64; arguments are those of `SamplingState.sample`."""
        has_rules = plan.has(LOGIT_RULES) or bitmask is not None
        # With rules the kernel of filters draws always: one less is compiled, for some 5 us.
        return draw_rows(
            logits if self._dtype is None else logits.to(self._dtype),
            self._columns,
            rows,
            positions,
            self._workspace,
            rules=self._rules if has_rules else None,
            bitmask=bitmask,
            adjusted=self._adjusted,
            has_filters=has_rules or plan.has(FILTERS),
        )

    def adjusted(
        self, logits: Tensor, rows: Tensor, positions: Tensor, bitmask: Tensor | None
    ) -> Tensor:
        """Return what a draw reads under rules, [M, V] float32, valid until the next one."""
        allowed = reduce_rows(
            logits,
            self._columns,
            rows,
            positions,
            self._workspace,
            rules=self._rules,
            bitmask=bitmask,
            adjusted=self._adjusted,
        )
        return allowed[: len(logits)]

    def record(self, rows: Tensor, token_ids: Tensor) -> None:
        """Enter one token into each row that has penalties or bad words."""
        record_tokens(self._rules, self._columns.floats, self._columns.ints, rows, token_ids)

    def score(self, logits: Tensor, token_ids: Tensor, num_top: int) -> RawLogprobs:
        """Score tokens under the raw distribution: see `SamplingState.score`."""
        return RawLogprobs(token_ids, *score_rows(logits, token_ids, num_top, self._workspace))

    def rehearse(self, logits_of: Callable[[bool], Tensor], padding_row: int) -> None:
        """Launch every kernel once, on the padding row, so that none is compiled or loaded later.

        `logits_of` returns the logits of one row, [1, V], exact or not.
        """
        row = torch.full((1,), padding_row, device=self._device)
        logits = logits_of(False)
        self._dtype = logits.dtype
        for features in (FILTERS, LOGIT_RULES, Feature.NONE):
            plan = SamplingPlan(Feature.RANDOM | features)
            self.draw(logits, row, torch.zeros_like(row), plan, None)
        exact = logits_of(True)
        self.draw(exact, row, torch.zeros_like(row), SamplingPlan(Feature.RANDOM), None)
        self.score(exact, torch.zeros_like(row), 1)
        self.record(row, torch.zeros_like(row))
        no_row = torch.full((1, 4), -1, dtype=torch.int32, device=self._device)
        write_rows(self._rules, no_row, no_row.view(-1))

    def _write_words(
        self,
        row: int,
        bad_words: Sequence[Sequence[int]],
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
    ) -> None:
        words = torch.full((len(bad_words), MAX_BAD_WORD_LENGTH), ANY_TOKEN, dtype=torch.int32)
        for index, word in enumerate(bad_words):
            words[index, -len(word) :] = torch.tensor(word)
        width = MAX_BAD_WORD_LENGTH - 1
        recent = [*prompt_ids[-width:], *output_ids[-width:]][-width:]
        padding = [NO_TOKEN] * (width - len(recent))
        write_row(self._rules.words[:, : len(bad_words)], row, words)
        history = torch.tensor([*padding, *recent, NO_TOKEN], dtype=torch.int32)
        write_row(self._rules.history, row, history)
