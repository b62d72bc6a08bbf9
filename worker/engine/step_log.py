"""The step log: what the engine process handed over and when, a file for measuring only.

A record is a head (when, kind, number of rows) and two columns, a name as uint64 and a count as
uint32. Times are CLOCK_MONOTONIC in seconds, which all processes of a machine share.

    ADDED   the engine took a request over; name = its seed, which the measurement has chosen;
            count = tokens that were delivered before
    STEP    the engine handed a step over; name = number of the ADDED record; count = tokens
"""

from __future__ import annotations

import os
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from tokenbus.engine.types import Request, StepOutput

Times: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"

_HEAD = struct.Struct("<dII")
_ADDED, _STEP = 0, 1
_SUFFIX = ".steps"
_FLUSH_BYTES = 1 << 16
_ROW_BYTES = 12


class StepLog:
    """Writes the file of this process; requests have one choice."""

    def __init__(self, folder: str) -> None:
        self._file = (Path(folder) / f"{os.getpid()}{_SUFFIX}").open("wb", buffering=0)
        self._buffer = bytearray()
        self._names: dict[int, int] = {}
        self._num_added = 0

    def added(self, request: Request, now: float) -> None:
        """Note that the engine has a request."""
        self._names[request.request_id] = self._num_added
        self._num_added += 1
        self._write(now, _ADDED, [request.params.seed or 0], [sum(map(len, request.resumed_ids))])

    def stepped(self, output: StepOutput, now: float) -> None:
        """Note the tokens of a step."""
        rows = [delta for delta in output.deltas if delta.token_ids]
        names = [self._names[delta.request_id] for delta in rows]
        self._write(now, _STEP, names, [len(delta.token_ids) for delta in rows])

    def flush(self) -> None:
        """Write what is buffered."""
        if self._buffer:
            self._file.write(self._buffer)
            self._buffer.clear()

    def _write(self, now: float, kind: int, names: list[int], counts: list[int]) -> None:
        if not names:
            return
        self._buffer += _HEAD.pack(now, kind, len(names))
        self._buffer += array("Q", names).tobytes()
        self._buffer += array("I", counts).tobytes()
        if len(self._buffer) >= _FLUSH_BYTES:
            self.flush()


@dataclass(slots=True)
class HandoverTimes:
    """When an engine first took a request and handed each token index over; NaN = unknown.

    tokens_s: [last index].
    """

    added_s: float
    tokens_s: Times


@dataclass(frozen=True, slots=True)
class _Stay:
    """A request's stay in one engine: tokens delivered before it, the times of those after."""

    seed: int
    added_s: float
    num_before: int
    times_s: Times


def read_step_logs(folder: Path) -> dict[int, HandoverTimes]:
    """Read the files of a folder, by seed; a token that was generated again counts at last."""
    stays = [stay for path in folder.glob(f"*{_SUFFIX}") for stay in _read(path.read_bytes())]
    found: dict[int, HandoverTimes] = {}
    for stay in sorted(stays, key=lambda stay: stay.added_s):
        handoffs = found.setdefault(stay.seed, HandoverTimes(stay.added_s, np.empty(0)))
        last = stay.num_before + len(stay.times_s)
        tokens_s = np.full(max(last, len(handoffs.tokens_s)), np.nan)
        tokens_s[: len(handoffs.tokens_s)] = handoffs.tokens_s
        tokens_s[stay.num_before : last] = stay.times_s
        handoffs.tokens_s = tokens_s
    return found


def _read(content: bytes) -> list[_Stay]:
    """Return the stays of one file."""
    added: list[tuple[int, float, int]] = []
    names, times = [np.empty(0, np.uint64)], [np.empty(0)]
    start = 0
    while start + _HEAD.size <= len(content):
        when, kind, num_rows = _HEAD.unpack_from(content, start)
        start += _HEAD.size
        if start + _ROW_BYTES * num_rows > len(content):
            break  # the process was killed while it wrote
        row_names = np.frombuffer(content, np.uint64, num_rows, start)
        counts = np.frombuffer(content, np.uint32, num_rows, start + 8 * num_rows)
        start += _ROW_BYTES * num_rows
        if kind == _ADDED:
            added.append((int(row_names[0]), when, int(counts[0])))
        else:
            names.append(np.repeat(row_names, counts))
            times.append(np.full(int(counts.sum()), when))
    all_names, all_times = np.concatenate(names), np.concatenate(times)
    order = np.argsort(all_names, kind="stable")
    # Tokens of request k lie between the borders k and k + 1.
    borders = np.searchsorted(all_names[order], np.arange(len(added) + 1, dtype=np.uint64))
    return [
        _Stay(*request, all_times[order[borders[number] : borders[number + 1]]])
        for number, request in enumerate(added)
    ]
