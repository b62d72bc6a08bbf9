"""Metrics, each declared once: name, kind, unit, labels and meaning.

`docs/metrics.md` is made of these declarations, and a scrape yields what they say and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """What Prometheus takes a metric for."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; `labels` are its own, behind those of its table.

    The name of a counter is as it is scraped, with `_total`.
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()


@dataclass(slots=True)
class MetricTable:
    """The metrics of one kind of process; each has the labels of the table before its own."""

    process: str
    labels: tuple[str, ...]
    metrics: list[Metric] = field(default_factory=list)

    def counter(self, name: str, unit: str, text: str, *labels: str) -> Metric:
        """Declare what only grows."""
        return self._add(Metric(f"{name}_total", Kind.COUNTER, unit, text, labels))

    def gauge(self, name: str, unit: str, text: str, *labels: str) -> Metric:
        """Declare what goes up and down."""
        return self._add(Metric(name, Kind.GAUGE, unit, text, labels))

    def histogram(self, name: str, text: str, *labels: str) -> Metric:
        """Declare durations in seconds, by bucket."""
        return self._add(Metric(f"{name}_seconds", Kind.HISTOGRAM, "seconds", text, labels))

    def _add(self, metric: Metric) -> Metric:
        self.metrics.append(metric)
        return metric
