"""The door guard: what is done with every request before a route sees it."""

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
    from collections.abc import Mapping

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
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
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

        error = self._refusal(scope, headers)
        if error is not None:
            await _answer(error, scope, receive, named)
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
            await _answer(error, scope, receive, named)

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> ApiError | None:
        """Return why a request is not let in, whatever its route."""
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in scope["headers"])
        if size > self._max_header_bytes:
            told = f"The headers have more than {self._max_header_bytes} bytes."
            return ApiError(431, told, code="headers_too_large")
        encoding = headers.get(b"content-encoding", b"identity").decode("latin-1")
        if encoding.strip().lower() not in ("", "identity"):
            told = f"A body is read as it comes, and this one is packed: {encoding[:40]!a}."
            return ApiError(415, told, code="body_is_packed")
        return None


async def _answer(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    response = JSONResponse(error.body(), error.status, error.told_headers())
    await response(scope, receive, send)


def _route_of(scope: Scope) -> str:
    """Return the path of a request's route, with its names; what has none is all one."""
    path: str = getattr(scope.get("route"), "path", "none")
    return path
