"""Expected output lengths per lane: what admission charges instead of max_tokens."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

# One standard deviation above the mean: with a normal spread 16 % of outputs run longer, which the
# pool absorbs because not all sequences of a batch end late together.
_DEVIATIONS = 1.0
# Outputs of a lane that must have ended before its estimate is believed over max_tokens.
_MIN_SAMPLES = 8
# Weight of a new sample: the estimate follows a change of habit within about 30 jobs.
_DECAY = 1 / 16
# Lanes remembered, least recently used dropped first.
_MAX_LANES = 4096


@dataclass(slots=True)
class _Lane:
    count: int = 0
    mean: float = 0.0
    variance: float = 0.0
    estimate: float = math.inf

    def estimate_anew(self) -> None:
        """Follow mean and variance; asked for far more often than they change."""
        if self.count >= _MIN_SAMPLES:
            self.estimate = max(1, math.ceil(self.mean + _DEVIATIONS * math.sqrt(self.variance)))


class OutputEstimator:
    """Exponentially weighted mean and spread of output lengths, in tokens."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()

    def observe(self, lane: str, num_output_tokens: int) -> str | None:
        """Learn from a job that ended by itself (not from an aborted one).

        Returns: the lane that was forgotten for it, if one was.
        """
        entry = self._lanes.setdefault(lane, _Lane())
        self._lanes.move_to_end(lane)
        forgotten = None
        if len(self._lanes) > _MAX_LANES:
            forgotten, _ = self._lanes.popitem(last=False)
        entry.count += 1
        weight = max(_DECAY, 1 / entry.count)
        delta = num_output_tokens - entry.mean
        entry.mean += weight * delta
        entry.variance = (1 - weight) * (entry.variance + weight * delta * delta)
        entry.estimate_anew()
        return forgotten

    def correct(self, lane: str, num_output_tokens: int) -> None:
        """Raise the estimate after a preemption: a running output is already this long."""
        entry = self._lanes.get(lane)
        if entry is not None and entry.count >= _MIN_SAMPLES:
            excess = max(0.0, num_output_tokens - entry.mean)
            entry.variance = max(entry.variance, excess * excess)
            entry.estimate_anew()

    def expected(self, lane: str, max_tokens: int) -> int:
        """Return the output tokens to reserve for a new job of this lane, at most `max_tokens`."""
        entry = self._lanes.get(lane)
        if entry is None or entry.estimate > max_tokens:
            return max_tokens
        return int(entry.estimate)
