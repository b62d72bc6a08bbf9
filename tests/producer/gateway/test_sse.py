"""Frames of server-sent events and headers of errors, as clients of others read them."""

from __future__ import annotations

from tokenbus.producer.gateway.wire import sse
from tokenbus.producer.gateway.wire.api_error import ApiError


def test_comment_is_no_event_to_a_client_that_keeps_ids() -> None:
    """A blank line ends a frame with data, nothing else: some clients take any for an event."""
    wire = sse.comment_frame("waiting") + sse.data_frame("{}", cursor=1)
    wire += sse.comment_frame("alive\nand well") + sse.DONE
    frames = wire.split(b"\n\n")
    assert frames.pop() == b""
    assert len(frames) == 2
    assert all(b"\ndata: " in frame for frame in frames)
    assert wire.count(b"\n: ") + wire.startswith(b": ") == 2


def test_error_that_will_be_the_same_is_not_sent_again() -> None:
    """Clients are told so where they would try by themselves; a time to come back at is enough."""
    for status in (408, 409, 429, 500, 503):
        assert ApiError(status, "no").told_headers() == {"X-Should-Retry": "false"}
        later = {"Retry-After": "3"}
        assert ApiError(status, "no", headers=later).told_headers() == later
    assert ApiError(400, "no").told_headers() == {}
