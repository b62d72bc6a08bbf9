"""Frames of server-sent events, as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.fast_json import to_json

if TYPE_CHECKING:
    from tokenbus.producer.gateway.wire.api_error import ApiError

MEDIA_TYPE = "text/event-stream"
# Nothing between door and client keeps frames back or stores them.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
DONE = b"data: [DONE]\n\n"


def data_frame(data: bytes | str, *, cursor: int | str | None = None, event: str = "") -> bytes:
    """Return a frame of one line of data, with its name and its id where it has them."""
    raw = data.encode() if isinstance(data, str) else data
    head = b"" if cursor is None else f"id: {cursor}\n".encode()
    if event:
        head += f"event: {event}\n".encode()
    return head + b"data: " + raw + b"\n\n"


def json_frame(value: Any, *, cursor: int | str | None = None, event: str = "") -> bytes:
    """Return a frame whose data is a JSON value."""
    return data_frame(to_json(value), cursor=cursor, event=event)


def comment_frame(text: str) -> bytes:
    """Return a comment, which no client hands on and every proxy takes for a sign of life."""
    return b": " + text.replace("\n", " ").encode() + b"\n\n"


def error_body(error: ApiError) -> bytes:
    """Return the data of an error that came after the stream had begun."""
    return to_json(error.body())


def error_frame(error: ApiError) -> bytes:
    """Return the frame of an error that is the door's own, and has no place in the stream."""
    return data_frame(error_body(error))
