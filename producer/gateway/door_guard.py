"""The edge of the door: what is done with every request before a route sees it."""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from tokenbus.producer.telemetry.gateway_metrics import GatewayMetrics

_log = logging.getLogger("tokenbus.gateway")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")


class DoorGuard:
    """Refuses headers that are too large, names each request in its answer, and counts it.

    It is the boundary of a request: a bug costs its caller an answer, which the log explains.
    """

    def __init__(self, app: ASGIApp, max_header_bytes: int, metrics: GatewayMetrics) -> None:
        self._app = app
        self._max_header_bytes = max_header_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size, given = len(scope.get("raw_path") or b"") + len(scope["query_string"]), b""
        for name, value in scope["headers"]:
            size += len(name) + len(value)
            if name == b"x-request-id":
                given = value
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(12).encode()

        began_at = time.monotonic()
        has_begun = False

        async def named(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            if message["type"] == "http.response.start":
                seconds = time.monotonic() - began_at
                self._metrics.count(_route_of(scope), message["status"], seconds)
                pair = (b"x-request-id", request_id)
                message = {**message, "headers": [*message["headers"], pair]}
            await send(message)

        if size > self._max_header_bytes:
            told = f"The headers have more than {self._max_header_bytes} bytes."
            error = ApiError(431, told, code="headers_too_large")
            await JSONResponse(error.body(), error.status)(scope, receive, named)
            return
        try:
            await self._app(scope, receive, named)
        except ClientDisconnect:
            # Nobody is there any more whom an answer could reach.
            return
        except Exception:
            if has_begun:
                raise
            _log.exception("request.failed path=%s", scope["path"])
            error = ApiError(500, "The gateway failed.", code="internal_error")
            await JSONResponse(error.body(), error.status)(scope, receive, named)


def _route_of(scope: Scope) -> str:
    """Return the path of a request's route, with its names; what has none is all one."""
    path: str = getattr(scope.get("route"), "path", "none")
    return path
