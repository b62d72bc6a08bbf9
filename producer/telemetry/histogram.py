"""Histograms: counts of durations by bucket, cheap to add to and to merge."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Seconds; from a step of a small model to a job that waited for half an hour.
BOUNDS_S = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0,
    300.0, 1800.0,
)  # fmt: skip


def bucket_of(seconds: float) -> int:
    """Return the index of the bucket that a duration is counted in."""
    return bisect_left(BOUNDS_S, seconds)


class Histogram:
    """`counts[i]` is the number up to bound i and past the one before; the last has no bound."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bucket_of(seconds)] += 1
        self.sum_s += seconds

    def add_sorted(self, seconds: Sequence[float]) -> None:
        """Count durations in ascending order, which takes a look per bucket, not per duration."""
        self.sum_s += sum(seconds)
        first = 0
        while first < len(seconds):
            bucket = bucket_of(seconds[first])
            is_last = bucket == len(BOUNDS_S)
            end = len(seconds) if is_last else bisect_right(seconds, BOUNDS_S[bucket], first)
            self.counts[bucket] += end - first
            first = end

    @property
    def count(self) -> int:
        """Return how many durations were counted."""
        return sum(self.counts)

    def quantile(self, share: float, since: Sequence[int] = ()) -> float | None:
        """Return the duration that a share of all is under, between the bounds of its bucket.

        Of those only that were counted after `since`, the counts of an earlier moment. None where
        there are none; past the last bound that is what is known.
        """
        counts = self.counts
        if since:
            counts = [now - before for now, before in zip(counts, since, strict=True)]
        left = share * sum(counts)
        low = 0.0
        for bound, count in zip(BOUNDS_S, counts, strict=False):
            if count and left <= count:
                return low + (bound - low) * left / count
            left -= count
            low = bound
        return low if sum(counts) else None

    def add_counts(self, counts: Mapping[int, int], sum_s: float) -> None:
        """Count durations by their buckets, whose sum is `sum_s`."""
        for bucket, count in counts.items():
            self.counts[bucket] += count
        self.sum_s += sum_s

    def merge(self, counts: Sequence[int], sum_s: float) -> None:
        """Add what another has counted, in few buckets as a rule."""
        for bucket, count in enumerate(counts):
            if count:
                self.counts[bucket] += count
        self.sum_s += sum_s

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, number of durations up to it), as Prometheus has it."""
        total = 0
        buckets = []
        for bound, count in zip((*BOUNDS_S, float("inf")), self.counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        return buckets
