"""What the engine process handed over and when: a file per process, for measuring only.

A record is a head (when, kind, number of rows) and two columns: the seeds of the requests as
uint64 and a count as uint32. The seed names the request, since whoever measures chose it; times are
CLOCK_MONOTONIC in seconds, which all processes of a machine share.

    ADDED   the engine took the request over; count = tokens that an earlier owner delivered
    STEP    the engine handed a step over; count = its tokens
"""

from __future__ import annotations

import os
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tokenbus.engine.types import Request, StepOutput

_HEAD = struct.Struct("<dII")
_ADDED, _STEP = 0, 1
_SUFFIX = ".steps"
_FLUSH_BYTES = 1 << 16


class StepLog:
    """Writes the file of this process; requests have one choice."""

    def __init__(self, folder: str) -> None:
        self._file = (Path(folder) / f"{os.getpid()}{_SUFFIX}").open("wb", buffering=0)
        self._buffer = bytearray()
        self._seeds: dict[int, int] = {}

    def added(self, request: Request, now: float) -> None:
        """Note that the engine has a request."""
        seed = self._seeds[request.request_id] = request.params.seed
        self._write(now, _ADDED, [seed], [sum(map(len, request.resumed_ids))])

    def stepped(self, output: StepOutput, now: float) -> None:
        """Note the tokens of a step."""
        seeds = self._seeds
        rows = [delta for delta in output.deltas if delta.token_ids]
        self._write(
            now,
            _STEP,
            [seeds[delta.request_id] for delta in rows],
            [len(delta.token_ids) for delta in rows],
        )

    def flush(self) -> None:
        """Write what is buffered."""
        if self._buffer:
            self._file.write(self._buffer)
            self._buffer.clear()

    def _write(self, now: float, kind: int, seeds: list[int], counts: list[int]) -> None:
        if not seeds:
            return
        self._buffer += _HEAD.pack(now, kind, len(seeds))
        self._buffer += array("Q", seeds).tobytes()
        self._buffer += array("I", counts).tobytes()
        if len(self._buffer) >= _FLUSH_BYTES:
            self.flush()


@dataclass(slots=True)
class Handoffs:
    """When the engine took a request, and when it handed each token index over; NaN = unknown."""

    added_s: float
    tokens_s: np.ndarray[Any, np.dtype[np.float64]]  # [last index]


def read_step_logs(folder: Path) -> dict[int, Handoffs]:
    """Read the files of a folder, by seed; where owners overlap the later one counts."""
    found: dict[int, Handoffs] = {}
    for path in sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime):
        for seed, (added_s, num_before, times) in _read(path.read_bytes()).items():
            tokens_s = np.full(num_before + len(times), np.nan)
            tokens_s[num_before:] = times
            handoffs = found.setdefault(seed, Handoffs(added_s, tokens_s))
            if handoffs.tokens_s is not tokens_s:
                num_known = min(num_before, len(handoffs.tokens_s))
                tokens_s[:num_known] = handoffs.tokens_s[:num_known]
                handoffs.tokens_s = tokens_s
    return found


def _read(content: bytes) -> dict[int, tuple[float, int, np.ndarray[Any, np.dtype[np.float64]]]]:
    """Return, by seed, when it was added, the tokens before that, and a time per token."""
    added: dict[int, tuple[float, int]] = {}
    seeds, times = [np.empty(0, np.uint64)], [np.empty(0)]
    start = 0
    while start + _HEAD.size <= len(content):
        when, kind, num_rows = _HEAD.unpack_from(content, start)
        start += _HEAD.size
        if start + 12 * num_rows > len(content):
            break  # the process was killed while it wrote
        row_seeds = np.frombuffer(content, np.uint64, num_rows, start)
        counts = np.frombuffer(content, np.uint32, num_rows, start + 8 * num_rows)
        start += 12 * num_rows
        if kind == _ADDED:
            added[int(row_seeds[0])] = (when, int(counts[0]))
        else:
            seeds.append(np.repeat(row_seeds, counts))
            times.append(np.full(int(counts.sum()), when))
    all_seeds, all_times = np.concatenate(seeds), np.concatenate(times)
    order = np.argsort(all_seeds, kind="stable")
    unique, starts = np.unique(all_seeds[order], return_index=True)
    pieces = np.split(all_times[order], starts[1:]) if len(unique) else []
    tokens = {int(seed): piece for seed, piece in zip(unique, pieces, strict=True)}
    nothing = np.empty(0)
    return {
        seed: (when, before, tokens.get(seed, nothing)) for seed, (when, before) in added.items()
    }
