"""The span process: it makes and sends the spans of a worker, and another takes its place."""

from __future__ import annotations

import gzip
import os
import secrets
import signal
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from servers.fixtures import pool, redis_url, valkey_server
from workers.null_workers import follow, null_settings, until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.telemetry.tracing import TraceContext
from tokenbus.worker.supervisor import Worker

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["pool", "redis_url", "valkey_server"]

requests = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="the extra `tracing` is not installed",
)


class Collector:
    """A collector of spans on the loopback: the names it was told, by trace."""

    def __init__(self) -> None:
        self.names: dict[int, list[str]] = defaultdict(list)
        self.resources: set[tuple[str, str]] = set()
        told = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                told.take(requests.ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def take(self, request: Any) -> None:
        """Keep what one request tells."""
        for each in request.resource_spans:
            self.resources |= {(a.key, a.value.string_value) for a in each.resource.attributes}
            for scope in each.scope_spans:
                for span in scope.spans:
                    self.names[int.from_bytes(span.trace_id)].append(span.name)


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Run a collector."""
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()
    thread.join()


async def test_another_span_process_goes_on_for_one_that_was_killed(
    redis_url: str, pool: str, collector: Collector
) -> None:
    """Jobs are served all along; what the last process was told is sent before the worker ends."""
    context = TraceContext(secrets.randbits(127) + 1, 1)
    settings = null_settings(pool, redis_url, trace_endpoint=collector.url)
    async with Worker(settings) as worker, await AsyncClient.connect(redis_url, pool=pool) as bus:
        link = worker._span_link
        assert link is not None
        first = link.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: link.pid not in (first, None))
        job = await bus.submit("a secret", max_tokens=20, traceparent=context.traceparent)
        await follow(bus, job)
    assert sorted(collector.names[context.trace_id]) == [
        "decode",
        "prefill",
        "publish",
        "queue",
        "tokenbus.job",
    ]
    assert {("service.name", "tokenbus-worker"), ("tokenbus.pool", pool)} <= collector.resources
