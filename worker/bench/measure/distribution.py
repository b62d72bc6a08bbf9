"""Distributions of durations: nearest-rank percentiles in milliseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.worker.engine.step_log import Times

_SHARES = (0.50, 0.90, 0.95, 0.99)
# Points of a curve in a report: enough for its shape at any width of a page.
_CURVE_SHARES = np.concatenate([np.linspace(0, 0.98, 99), np.linspace(0.981, 1, 20)])


class Distribution(msgspec.Struct, frozen=True):
    """A sample in milliseconds; zeros for an empty one."""

    count: int = 0
    mean: float = 0.0
    p50: float = 0.0
    p90: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    max: float = 0.0

    @classmethod
    def of_seconds(cls, values_s: Times | Iterable[float]) -> Distribution:
        """Sum up durations given in seconds."""
        values = np.asarray(
            values_s if isinstance(values_s, np.ndarray) else list(values_s), np.float64
        )
        if not len(values):
            return cls()
        ranks = np.quantile(values, _SHARES, method="inverted_cdf")
        parts = [values.mean(), *ranks, values.max()]
        return cls(len(values), *(round(float(part) * 1e3, 3) for part in parts))


def cdf_ms(values_s: Times) -> list[tuple[float, float]]:
    """Return points (milliseconds, share of the sample at most as long)."""
    if not len(values_s):
        return []
    marks = np.quantile(values_s, _CURVE_SHARES) * 1e3
    return [
        (round(float(x), 3), round(float(share), 4))
        for x, share in zip(marks, _CURVE_SHARES, strict=True)
    ]
