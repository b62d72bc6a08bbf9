"""Costs of steps by their rows, measured while the engine runs: how many drafts pay.

A sequence has a row in a step for its next token and one for each drafted token. Times are medians
of the last few steps, made monotone. Up to twice the largest size that was seen lately, steps count
as hardly dearer than that one, so they are tried and measured. A size that was dear the first time
is tried again before it is believed: that step may have been held up. Where no step as small as one
without drafts was seen lately, the next one has none, or nothing would tell what drafts cost.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# Numbers of rows with a time of their own: each up to 8, then in steps of a quarter at most.
_SIZES = (
    *range(1, 9),
    *(10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256),
    *(320, 384, 448, 512, 640, 768, 896, 1024),
)
_MEDIAN_OF = 5
# Steps of a size from which on its median counts.
_KNOWN_FROM = 3
# Steps after which the curve is drawn anew, and after which a size counts as not seen.
_REDRAW, _STALE = 16, 2048
# What a row more costs where nothing was measured, as a share of the step, and how far that is
# hoped for: to so many times the largest size that was.
_HOPED, _HOPED_UP_TO = 0.01, 2
# Drafts have to promise so much more tokens a second: what they cost the host, and errors.
MARGIN = 1.05


class StepCosts:
    """Seconds of a decode step by its number of rows."""

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = {}
        self._seen_at: dict[int, int] = {}
        self._num_steps = 0
        # Relative until something was measured; `_largest` is where what is known ends.
        self._curve, self._largest = [1.0], 0
        # Where it begins: what is smaller was not seen.
        self._smallest = _SIZES[-1]
        self._may_pay: dict[int, bool] = {}

    def measured(self, num_rows: int, seconds: float) -> None:
        """Take the time of a step that did nothing but decode `num_rows` rows."""
        if not 0 < num_rows <= _SIZES[-1]:
            return
        size = _SIZES[bisect_left(_SIZES, num_rows)]
        times = self._times.setdefault(size, deque(maxlen=_MEDIAN_OF))
        times.append(seconds)
        self._num_steps += 1
        self._seen_at[size] = self._num_steps
        if len(times) <= _KNOWN_FROM or self._num_steps % _REDRAW == 0:
            self._redraw()

    def of(self, num_rows: int) -> float:
        """Return the seconds of a step, relative ones before any was measured."""
        return self._reaching(num_rows)[num_rows]

    def may_pay(self, num_seqs: int, limit: int) -> bool:
        """Tell whether up to `limit` drafted tokens of each sequence may pay, if all were right."""
        pays = self._may_pay.get(num_seqs)
        if pays is None:
            least = num_seqs / self.of(num_seqs) * MARGIN
            most = min(num_seqs * (1 + limit), _SIZES[-1])
            sizes = (min(size, most) for size in _SIZES[bisect_right(_SIZES, num_seqs) :])
            pays = any(size / self.of(size) > least for size in sizes)
            self._may_pay[num_seqs] = pays
        return pays

    def best(self, num_seqs: int, chances: Sequence[float], num_tokens: float) -> int:
        """Return how many of the drafted tokens make the most tokens a second; 0 if none pays.

        Args:
            chances: that each is kept, the best first.
            num_tokens: what the step brings without drafts.
        """
        if num_seqs <= _SIZES[-1] and _SIZES[bisect_left(_SIZES, num_seqs)] < self._smallest:
            return 0
        least = num_tokens / self.of(num_seqs) * MARGIN
        chances = chances[: max(0, _SIZES[-1] - num_seqs)]
        curve = self._reaching(num_seqs + len(chances))
        found, expected = 0, num_tokens
        for num_rows, chance in enumerate(chances, num_seqs + 1):
            expected += chance
            if expected > least * curve[num_rows]:
                least, found = expected / curve[num_rows], num_rows - num_seqs
        return found

    def _reaching(self, num_rows: int) -> list[float]:
        """Return the curve up to so many rows at least, by what is hoped for beyond its end."""
        curve, largest = self._curve, self._largest
        for size in range(len(curve), num_rows + 1):
            if size <= largest * _HOPED_UP_TO or not largest:
                curve.append(curve[largest] * (1.0 + _HOPED * (size - largest)))
            else:
                # As dear as steps of their own.
                curve.append(curve[largest] * size / largest)
        return curve

    def _redraw(self) -> None:
        """Draw the curve through what was measured lately."""
        self._may_pay.clear()
        lately = self._num_steps - _STALE
        for size in [size for size, at in self._seen_at.items() if at < lately]:
            del self._times[size], self._seen_at[size]
        curve: list[float] = []
        for size, times in sorted(self._times.items()):
            if not curve:
                curve = [median(times)] * (size + 1)
                continue
            low, begin = len(curve) - 1, curve[-1]
            seconds = median(times)
            if len(times) < _KNOWN_FROM and seconds > begin * (1.0 + _HOPED * (size - low)):
                continue
            step = max(0.0, seconds - begin) / (size - low)
            curve.extend(begin + step * number for number in range(1, size - low + 1))
        self._curve, self._largest = curve, len(curve) - 1
        self._smallest = min(self._times)
