"""Metrics of one gateway process, in the text format of Prometheus; none of them names a caller."""

from __future__ import annotations

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

MEDIA_TYPE = CONTENT_TYPE_LATEST
# Seconds until an answer begins: from one out of memory to one that waited in the queue.
_BEGINNINGS_S = (0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class GatewayMetrics:
    """Counts requests and watches what is open."""

    def __init__(self) -> None:
        """Begin with nothing counted."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tokenbus_gateway_requests",
            "Requests that were answered, by route and status",
            ["route", "status"],
            registry=self._registry,
        )
        self._beginnings = Histogram(
            "tokenbus_gateway_beginning_seconds",
            "Seconds until an answer began, by route",
            ["route"],
            buckets=_BEGINNINGS_S,
            registry=self._registry,
        )
        self._open = Gauge(
            "tokenbus_gateway_open_requests",
            "Requests that wait for jobs now, streams among them",
            registry=self._registry,
        )

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count a request whose answer has begun."""
        self._requests.labels(route, str(status)).inc()
        self._beginnings.labels(route).observe(seconds)

    def text(self, num_open: int) -> bytes:
        """Return everything as of now."""
        self._open.set(num_open)
        return generate_latest(self._registry)
