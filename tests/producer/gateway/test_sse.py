"""Frames of server-sent events, as clients that keep the last id take them apart."""

from __future__ import annotations

from tokenbus.producer.gateway.wire import sse


def test_comment_is_no_event_to_a_client_that_keeps_ids() -> None:
    """A blank line ends a frame with data, nothing else: some clients take any for an event."""
    wire = sse.comment_frame("waiting") + sse.data_frame("{}", cursor=1)
    wire += sse.comment_frame("alive\nand well") + sse.DONE
    frames = wire.split(b"\n\n")
    assert frames.pop() == b""
    assert len(frames) == 2
    assert all(b"\ndata: " in frame for frame in frames)
    assert wire.count(b"\n: ") + wire.startswith(b": ") == 2
