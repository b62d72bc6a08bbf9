"""The set-up of traces: spans of this process go to a collector, over OTLP and HTTP."""

from __future__ import annotations

import importlib
import importlib.util
import random
from functools import partial
from typing import TYPE_CHECKING, Any

from tokenbus.producer.release import release
from tokenbus.producer.telemetry.tracing import TraceContext, sampled_context

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.producer.telemetry.tracing import EndedSpan, WallClock

_NEEDED = (
    "opentelemetry.sdk.trace.export",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
)


class TracingMissing(Exception):
    """A library that traces need is not installed."""


def check_tracing() -> None:
    """Look for what traces need, and import none of it. Raises: TracingMissing names the extra."""
    for name in _NEEDED:
        try:
            found = importlib.util.find_spec(name)
        except ImportError:
            found = None
        if found is None:
            raise TracingMissing(
                f"trace_endpoint: {name} is not installed; pip install 'tokenbus[tracing]'"
            )


def send_traces(endpoint: str, process: str, pool: str) -> Callable[[], None]:
    """Send the spans of this process to a collector from now on, in batches, from a thread.

    Args:
        endpoint: URL of OTLP over HTTP, `http://collector:4318/v1/traces` for instance.
        process: what the spans are said to come from: `worker`, `control` or `gateway`.
    Returns: what sends the rest, and ends it.
    Raises: ImportError where `check_tracing` finds something missing.
    """
    trace, export, otlp = map(importlib.import_module, ("opentelemetry.trace", *_NEEDED))
    provider = make_provider(process, pool)
    provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter(endpoint)))
    trace.set_tracer_provider(provider)
    flush: Callable[[], None] = provider.shutdown
    return flush


def make_provider(process: str, pool: str) -> Any:
    """Return a provider that takes ended spans as well, as its `ended_spans`."""
    sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
    resources: Any = importlib.import_module("opentelemetry.sdk.resources")
    resource = resources.Resource.create(
        {
            "service.name": f"tokenbus-{process}",
            "service.version": release(),
            "tokenbus.pool": pool,
        }
    )
    processor = sdk.SynchronousMultiSpanProcessor()
    provider = sdk.TracerProvider(resource=resource, active_span_processor=processor)
    provider.ended_spans = EndedSpans(provider, processor)
    return provider


class EndedSpans:
    """Hands ended spans to the processor of a provider, with the ids that are known of them.

    To start and to end each with the provider takes three times as long, in the process whose
    tokens wait meanwhile.
    """

    def __init__(self, provider: Any, processor: Any) -> None:
        self._trace: Any = importlib.import_module("opentelemetry.trace")
        sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
        scopes: Any = importlib.import_module("opentelemetry.sdk.util.instrumentation")
        self._sampler = provider.sampler
        self._processor = processor
        scope = scopes.InstrumentationScope("tokenbus", release())
        self._make = partial(
            sdk.ReadableSpan, resource=provider.resource, instrumentation_scope=scope
        )

    def tell(
        self,
        parent: TraceContext,
        root: EndedSpan,
        children: Sequence[EndedSpan],
        clock: WallClock,
    ) -> str | None:
        """Tell of a span below `parent` and of its children; return its `traceparent`.

        None where the sampler wants none.
        """
        trace = self._trace
        above = sampled_context(trace, parent, is_remote=True)
        around = trace.set_span_in_context(trace.NonRecordingSpan(above))
        choice = self._sampler.should_sample(around, parent.trace_id, root.name)
        if not choice.decision.is_sampled():
            return None
        context = root.context or _drawn(parent)
        own = sampled_context(trace, context, is_remote=False)
        for child in children:
            below = sampled_context(trace, _drawn(parent), is_remote=False)
            self._end(child, below, own, clock)
        self._end(root, own, above, clock)
        return context.traceparent

    def _end(self, span: EndedSpan, context: Any, above: Any, clock: WallClock) -> None:
        trace = self._trace
        followed = [] if span.link is None else [span.link]
        code = trace.StatusCode.ERROR if span.is_error else trace.StatusCode.UNSET
        self._processor.on_end(
            self._make(
                span.name,
                context,
                above,
                attributes=span.attributes,
                links=[trace.Link(sampled_context(trace, one, is_remote=True)) for one in followed],
                status=trace.Status(code),
                start_time=clock.ns(span.began_at),
                end_time=clock.ns(max(span.began_at, span.ended_at)),
            )
        )


def _drawn(parent: TraceContext) -> TraceContext:
    """Draw the id of a span of the same trace."""
    return TraceContext(parent.trace_id, random.getrandbits(64) or 1)
