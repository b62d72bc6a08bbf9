"""The body of a request: read within its bounds, and parsed."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import msgspec

from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request

    from tokenbus.producer.gateway.settings import GatewaySettings

# Deeper than this no request is nested, and no parser goes.
_decode = msgspec.json.Decoder().decode


async def read_body(request: Request, settings: GatewaySettings) -> bytes:
    """Return the bytes of a body. Raises: ApiError 413 or 408."""
    limit = settings.gateway_max_body_bytes
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told) > limit:
        raise too_large(request, f"The body has more than {limit} bytes.", "body_too_large")
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.gateway_body_timeout_s):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    told = f"The body has more than {limit} bytes."
                    raise too_large(request, told, "body_too_large")
                parts.append(part)
    except TimeoutError:
        told = f"The body did not arrive within {settings.gateway_body_timeout_s:g} s."
        headers = {"Connection": "close", "Retry-After": "1"}
        raise ApiError(408, told, code="timeout", headers=headers) from None
    return b"".join(parts)


async def read_object(request: Request, settings: GatewaySettings) -> dict[str, Any]:
    """Return the JSON object that a body is. Raises: ApiError 400, 408, 413."""
    return object_of(await read_body(request, settings))


def object_of(body: bytes) -> dict[str, Any]:
    """Return the JSON object that some bytes are. Raises: ApiError 400."""
    try:
        value = _decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        value = _decoded_slowly(body)
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.", code="invalid_json")
    return value


def _decoded_slowly(body: bytes) -> Any:
    """Parse what the fast parser refuses: half a surrogate pair is refused later, by its field."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is no JSON that can be read.", code="invalid_json") from None


def too_large(request: Request, told: str, code: str) -> ApiError:
    """Return the error of a body of which the rest is thrown away.

    The connection stays open for it: many clients look for no answer before they have sent all,
    and of one that is closed meanwhile they see the break alone. Who waits to be told whether to
    send sends nothing then.
    """
    headers = {"Connection": "close"} if "expect" in request.headers else {}
    return ApiError(413, told, code=code, headers=headers)
