"""Rules on single tokens: logit bias, forbidden words, and no early end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenbus.engine.chat.requests.bounds import MAX_BAD_WORD_LENGTH, MAX_BAD_WORDS, MAX_LOGIT_BIAS
from tokenbus.engine.sampling.row_table import NO_STOP_ID, write_row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.types import SamplingParams

# Three values that are no token ids: any history matches, no history yet, a word slot not in use.
_ANY = -1
_NO_TOKEN = -2
_UNUSED = -3

_FORBIDDEN = float("-inf")


class LogitBias:
    """Up to 1024 (token, bias) pairs per row; unused pairs add 0 to token 0."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        """Allocate the pairs."""
        self._ids = torch.zeros(num_rows, MAX_LOGIT_BIAS, dtype=torch.int64, device=device)
        self._values = torch.zeros(num_rows, MAX_LOGIT_BIAS, device=device)

    def write(self, row: int, params: SamplingParams) -> None:
        """Set a row's pairs."""
        unused = MAX_LOGIT_BIAS - len(params.logit_bias)
        ids = [*params.logit_bias.keys(), *([0] * unused)]
        values = [*params.logit_bias.values(), *([0.0] * unused)]
        write_row(self._ids, row, torch.tensor(ids))
        write_row(self._values, row, torch.tensor(values, dtype=torch.float32))

    def apply_(self, logits: Tensor, rows: Tensor) -> None:
        """Add each row's biases in place; logits [M, V] float32, rows [M] int64."""
        logits.scatter_add_(-1, self._ids[rows], self._values[rows])


class BadWords:
    """Token sequences that must not appear: the last token is masked once the rest was seen.

    words: [R, W, L] int64, right-aligned, filled on the left with `_ANY`.
    history: [R, L - 1] int64, the last tokens of prompt and output, newest last.
    """

    def __init__(self, num_rows: int, device: torch.device) -> None:
        """Allocate words and history."""
        shape = (num_rows, MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH)
        self._words = torch.full(shape, _UNUSED, dtype=torch.int64, device=device)
        self._words[:, :, -1] = 0
        history = (num_rows, MAX_BAD_WORD_LENGTH - 1)
        self._history = torch.full(history, _NO_TOKEN, dtype=torch.int64, device=device)

    def write(
        self,
        row: int,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int],
    ) -> None:
        """Set a row's words and its history."""
        words = torch.full((MAX_BAD_WORDS, MAX_BAD_WORD_LENGTH), _UNUSED)
        words[:, -1] = 0
        for index, word in enumerate(params.bad_words):
            words[index, : -len(word)] = _ANY
            words[index, -len(word) :] = torch.tensor(word)
        width = MAX_BAD_WORD_LENGTH - 1
        recent = [*prompt_ids[-width:], *output_ids[-width:]][-width:]
        padding = [_NO_TOKEN] * (width - len(recent))
        write_row(self._words, row, words)
        write_row(self._history, row, torch.tensor([*padding, *recent]))

    def record(self, rows: Tensor, token_ids: Tensor) -> None:
        """Append one token to the history of each row."""
        history = self._history[rows]
        self._history[rows] = torch.cat((history[:, 1:], token_ids.unsqueeze(-1)), dim=-1)

    def apply_(self, logits: Tensor, rows: Tensor) -> None:
        """Mask in place what would complete a word; logits [M, V] float32, rows [M] int64."""
        words = self._words[rows]
        prefix = words[:, :, :-1]
        matches = (prefix == self._history[rows].unsqueeze(1)) | (prefix == _ANY)
        penalty = torch.where(matches.all(-1), _FORBIDDEN, 0.0)
        logits.scatter_add_(-1, words[:, :, -1], penalty)


def apply_min_tokens_(
    logits: Tensor, stop_ids: Tensor, positions: Tensor, min_tokens: Tensor
) -> None:
    """Mask in place what would end a choice that has not reached `min_tokens`.

    Args:
        logits: [M, V] float32; stop_ids: [M, S] int64, unused entries are `NO_STOP_ID`.
        positions, min_tokens: [M] int64.
    """
    too_early = (positions < min_tokens).unsqueeze(-1) & (stop_ids != NO_STOP_ID)
    logits.scatter_add_(-1, stop_ids.clamp(min=0), torch.where(too_early, _FORBIDDEN, 0.0))
