"""Per-row scalars of the sampler: written on the host, read on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.chat.requests.bounds import MAX_STOP_IDS
from tokenbus.engine.sampling.plan import is_greedy
from tokenbus.engine.sampling.random_draw import stream_key
from tokenbus.kernels.sampling.columns import FLOATS, INTS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tokenbus.engine.types import SamplingParams

# Columns at which the floats, the integers and the stop ids of a row begin.
_FLOATS = 1
_INTS = _FLOATS + len(FLOATS) // 2
_STOP_IDS = _INTS + len(INTS)
# Fills unused stop ids; no token has it.
NO_STOP_ID = -1


@dataclass(frozen=True, slots=True)
class RowScalars:
    """The scalars of M rows, in the order of `columns`; floats are float32, others int64: [M]."""

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition_penalty: Tensor
    presence_penalty: Tensor
    frequency_penalty: Tensor
    key: Tensor
    increment: Tensor
    top_k: Tensor
    min_tokens: Tensor
    is_random: Tensor
    num_biases: Tensor
    num_words: Tensor


def write_row(table: Tensor, row: int, values: Tensor) -> None:
    """Copy host values into one row of a device table without waiting for the device."""
    if table.device.type != "cpu":
        values = values.pin_memory()
    table[row].copy_(values, non_blocking=True)


class RowTable:
    """A packed table of all rows, with a neutral last row for padding.

    A row is of int64: its own number, its floats (float32, two in each), its integers, its stop
    ids. So what is known of many new rows goes to the device in one copy. On a CPU the table is
    written in place. On an accelerator changed rows are collected and sent by `flush`; the buffers
    of a copy in flight are never written again.

    Attributes: floats, ints and stop_ids are the columns of all rows, on the device.
    """

    def __init__(self, max_rows: int, eos_token_ids: Sequence[int], device: torch.device) -> None:
        """Allocate max_rows + 1 rows."""
        num_rows = max_rows + 1
        self._device = device
        self._eos_token_ids = tuple(eos_token_ids)
        self._host = torch.zeros(num_rows, _STOP_IDS + MAX_STOP_IDS, dtype=torch.int64)
        self._host[:, 0] = torch.arange(num_rows)
        self._host[:, _STOP_IDS:] = NO_STOP_ID
        floats = self._host[:, _FLOATS:_INTS].view(torch.float32)
        floats[:] = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])
        # What a write goes through: an assignment of torch takes ten times as long.
        self._float_rows = floats.numpy()
        self._int_rows = self._host[:, _INTS:_STOP_IDS].numpy()
        self._stop_rows = self._host[:, _STOP_IDS:].numpy()
        self._stop_ids_of: list[tuple[int, ...]] = [()] * num_rows
        self._table = self._host.to(device)
        self.floats = self._table[:, _FLOATS:_INTS].view(torch.float32)
        self.ints = self._table[:, _INTS:_STOP_IDS]
        self.stop_ids = self._table[:, _STOP_IDS:]
        self._changed: set[int] = set()

    def write(self, row: int, params: SamplingParams, choice: int) -> None:
        """Set a row's scalars; they reach the device with the next `flush`."""
        greedy = is_greedy(params)
        key, increment = stream_key(params.seed or 0, choice)
        self._float_rows[row] = (
            1.0 if greedy else params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
        self._int_rows[row] = (
            key,
            increment,
            params.top_k,
            params.min_tokens,
            not greedy,
            len(params.logit_bias),
            len(params.bad_words),
        )
        # With `ignore_eos` the model's own ids do not end a choice, so min_tokens spares them too.
        eos_ids = () if params.ignore_eos else self._eos_token_ids
        stop_ids = tuple(dict.fromkeys((*eos_ids, *params.stop_token_ids)))
        if stop_ids != self._stop_ids_of[row]:
            self._stop_ids_of[row] = stop_ids
            self._stop_rows[row] = NO_STOP_ID
            self._stop_rows[row, : len(stop_ids)] = stop_ids
        self._changed.add(row)

    def flush(self) -> None:
        """Send changed rows to the device."""
        if not self._changed:
            return
        if self._device.type != "cpu":
            rows = self._host[sorted(self._changed)]
            self._put(rows.pin_memory().to(self._device, non_blocking=True))
        self._changed.clear()

    def _put(self, rows: Tensor) -> None:
        """Let rows take the place of those with their numbers."""
        self._table.index_copy_(0, rows[:, 0], rows)

    def gather(self, rows: Tensor) -> RowScalars:
        """Read the scalars of rows [M] int64."""
        return RowScalars(*self.floats[rows].unbind(-1), *self.ints[rows].unbind(-1))
