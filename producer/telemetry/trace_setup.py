"""The set-up of traces: spans of this process go to a collector, over OTLP and HTTP."""

from __future__ import annotations

import importlib
from typing import Any

from tokenbus.producer.release import release
from tokenbus.producer.telemetry.tracing import drawn_id


class TracingMissing(Exception):
    """A library that traces need is not installed."""


def send_traces(endpoint: str, process: str, pool: str) -> None:
    """Send the spans of this process to a collector from now on, in batches, from a thread.

    Args:
        endpoint: URL of OTLP over HTTP, `http://collector:4318/v1/traces` for instance.
        process: what the spans are said to come from: `worker`, `control` or `gateway`.
    Raises: TracingMissing that names the extra.
    """
    try:
        trace = importlib.import_module("opentelemetry.trace")
        export = importlib.import_module("opentelemetry.sdk.trace.export")
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise TracingMissing(
            f"trace_endpoint: {error.name} is not installed; pip install 'tokenbus[tracing]'"
        ) from None
    provider = make_provider(process, pool)
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter(endpoint)))
    trace.set_tracer_provider(provider)


def make_provider(process: str, pool: str) -> Any:
    """Return a provider whose spans have the ids that are known of them."""
    sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
    ids: Any = importlib.import_module("opentelemetry.sdk.trace.id_generator")
    resources: Any = importlib.import_module("opentelemetry.sdk.resources")

    class KnownIds(ids.RandomIdGenerator):  # type: ignore[misc]  # its module is imported late
        def generate_span_id(self) -> int:
            drawn: int = drawn_id.next_id or super().generate_span_id()
            return drawn

    resource = resources.Resource.create(
        {
            "service.name": f"tokenbus-{process}",
            "service.version": release(),
            "tokenbus.pool": pool,
        }
    )
    return sdk.TracerProvider(resource=resource, id_generator=KnownIds())
