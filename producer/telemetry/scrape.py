"""A scrape: the metrics of a table as of now, in the form that Prometheus reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

from tokenbus.producer.telemetry.metric import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client.metrics_core import Metric as Family

    from tokenbus.producer.telemetry.histogram import Histogram
    from tokenbus.producer.telemetry.metric import Metric, MetricTable


class Scrape:
    """Collects samples of a table; `base` are the values of the labels that all of it have.

    A metric without samples is told of without any: it exists, and nothing has happened.
    """

    def __init__(self, table: MetricTable, *base: str) -> None:
        self._base = base
        self._families: dict[str, Family] = {
            metric.name: _family(metric, [*table.labels, *metric.labels])
            for metric in table.metrics
        }

    def one(self, metric: Metric, value: float, *labels: str) -> None:
        """Add a sample with these values of the metric's own labels."""
        family = self._families[metric.name]
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric([*self._base, *labels], value)

    def many(self, metric: Metric, samples: Mapping[tuple[str, ...], float]) -> None:
        """Add samples by the values of the metric's own labels."""
        for labels, value in samples.items():
            self.one(metric, value, *labels)

    def histogram(self, metric: Metric, histogram: Histogram, *labels: str) -> None:
        """Add the buckets of a histogram."""
        family = self._families[metric.name]
        assert isinstance(family, HistogramMetricFamily)
        family.add_metric([*self._base, *labels], histogram.cumulative(), histogram.sum_s)

    def families(self) -> Iterator[Family]:
        """Yield all of the table."""
        yield from self._families.values()


def _family(metric: Metric, labels: list[str]) -> Family:
    if metric.kind is Kind.COUNTER:
        return CounterMetricFamily(metric.name.removesuffix("_total"), metric.help, labels=labels)
    if metric.kind is Kind.GAUGE:
        return GaugeMetricFamily(metric.name, metric.help, labels=labels)
    return HistogramMetricFamily(metric.name, metric.help, labels=labels)
