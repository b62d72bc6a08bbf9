"""Recent times: quantiles over the last ten seconds, from histograms that only grow."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from tokenbus.producer.telemetry.histogram import Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenbus.worker.metrics import Metrics

_LOOKS = 10


class RecentTimes:
    """Looked at once a second; what was counted before the tenth last look is left out."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._earlier: deque[Mapping[str, list[int]]] = deque(maxlen=_LOOKS)

    def look(self) -> dict[str, tuple[float, float, int]]:
        """Return median and 99th percentile in ms, and how many, by name; those with any."""
        self._metrics.count()
        now = self._by_name()
        before = self._earlier[0] if self._earlier else {}
        self._earlier.append({name: list(each.counts) for name, each in now.items()})
        found = {}
        for name, histogram in now.items():
            since = before.get(name, ())
            count = histogram.count - sum(since)
            p50, p99 = histogram.quantile(0.5, since), histogram.quantile(0.99, since)
            if p50 is not None and p99 is not None:
                found[name] = (round(1e3 * p50, 2), round(1e3 * p99, 2), count)
        return found

    def _by_name(self) -> dict[str, Histogram]:
        metrics = self._metrics
        by_priority = {
            "queue": metrics.queue_time,
            "ttft": metrics.ttft,
            "itl": metrics.itl,
            "e2e": metrics.e2e,
        }
        all_of = {"step": metrics.step_time, "publish": metrics.publish_lag}
        for name, histograms in by_priority.items():
            all_of[name] = Histogram()
            for histogram in histograms:
                all_of[name].merge(histogram.counts, histogram.sum_s)
        return all_of
