"""The telemetry server: `/metrics`, `/healthz` and `/readyz` over HTTP, in threads of its own.

It answers while the event loop is busy, and says so when that stands still.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from prometheus_client.registry import Collector

# A client that does not say what it wants keeps a thread for so long.
_TIMEOUT_S = 5.0
_POLL_S = 0.1


class Probed(Protocol):
    """What the probes are answered from, by any thread."""

    @property
    def is_ready(self) -> bool:
        """Tell whether the process does its work."""
        ...

    @property
    def is_stuck(self) -> bool:
        """Tell whether nothing but a restart helps."""
        ...

    def answer(self) -> Mapping[str, object]:
        """Return what there is to say of it: its phase first."""
        ...


@asynccontextmanager
async def telemetry_served(
    collector: Collector, probed: Probed, host: str, port: int
) -> AsyncIterator[None]:
    """Answer scrapes and probes meanwhile.

    Raises: SettingsInvalid if the port cannot be had.
    """
    registry = CollectorRegistry()
    registry.register(collector)

    class Handler(_Handler):
        pass

    Handler.registry, Handler.probed = registry, probed
    try:
        server = _server(host, port, Handler)
    except OSError as error:
        raise SettingsInvalid(f"metrics_port: {host}:{port}: {error}") from None
    thread = threading.Thread(
        target=server.serve_forever, args=(_POLL_S,), name="telemetry", daemon=True
    )
    thread.start()
    get_logger().info("metrics.served", host=host, port=port)
    try:
        yield
    finally:
        # Its shutdown waits for the thread's next look at its flag.
        await asyncio.to_thread(server.shutdown)
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # An answer under way when the process ends is nobody's loss.
    block_on_close = False


class _ServerV6(_Server):
    address_family = socket.AF_INET6


def _server(host: str, port: int, handler: type[_Handler]) -> _Server:
    """Listen at a name or address. Raises: OSError."""
    family, *_, address = socket.getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    kind = _ServerV6 if family == socket.AF_INET6 else _Server
    return kind((str(address[0]), port), handler)


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    registry: CollectorRegistry
    probed: Probed
    timeout = _TIMEOUT_S
    server_version = "tokenbus"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a scrape or a probe."""
        path = self.path.partition("?")[0]
        if path in ("/metrics", "/"):
            encode, media_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(200, media_type, encode(self.registry))
        elif path == "/healthz":
            self._probe(is_well=not self.probed.is_stuck)
        elif path == "/readyz":
            self._probe(is_well=self.probed.is_ready)
        else:
            self._answer(404, "text/plain", b"/metrics, /healthz, /readyz\n")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name of the base
        """Log no request: a scrape comes every few seconds."""

    def _probe(self, *, is_well: bool) -> None:
        status = "ok" if is_well else "unavailable"
        body = json.dumps({"status": status, **self.probed.answer()})
        self._answer(200 if is_well else 503, "application/json", body.encode())

    def _answer(self, status: int, media_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
