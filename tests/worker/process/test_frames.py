"""Frames carry messages between processes, however the bytes are cut on their way."""

from __future__ import annotations

import asyncio
import struct
from typing import TypeAlias

import msgspec
import pytest

from tokenbus.worker.process.frame_receiver import FrameReceiver
from tokenbus.worker.process.frames import MAX_FRAME_BYTES, FrameReader, Framing, frame_of


class Word(msgspec.Struct, tag="word", array_like=True):
    """A message."""

    text: str


class Number(msgspec.Struct, tag="number", array_like=True):
    """Another one."""

    value: int


Message: TypeAlias = "Word | Number"
MESSAGES: Framing[Message] = Framing(Word | Number)
SAID: list[Message] = [Word("a"), Number(2), Word("b" * 70_000), Word("")]
TOO_LONG = struct.pack("<I", MAX_FRAME_BYTES + 1)


@pytest.mark.parametrize("size", [1, 3, 50_000, 1_000_000])
def test_messages_arrive_whole_and_in_order(size: int) -> None:
    """The bytes of a pipe are cut anywhere; messages are not."""
    said = b"".join(map(MESSAGES.encode, SAID))
    reader = FrameReader()
    bodies: list[bytes] = []
    for start in range(0, len(said), size):
        bodies += reader.feed(said[start : start + size])
    assert [MESSAGES.decode(body) for body in bodies] == SAID


async def test_stream_is_read_message_by_message() -> None:
    """A reader of a stream gets the same messages, and the end of the stream as an error."""
    stream = asyncio.StreamReader()
    stream.feed_data(b"".join(map(MESSAGES.encode, SAID)))
    stream.feed_eof()
    assert [await MESSAGES.read(stream) for _ in SAID] == SAID
    with pytest.raises(asyncio.IncompleteReadError):
        await MESSAGES.read(stream)


async def test_frame_past_the_bound_is_refused() -> None:
    """A length that no message has comes from a broken peer, and nothing is waited for."""
    with pytest.raises(ValueError, match=f"frame of {MAX_FRAME_BYTES + 1} bytes exceeds"):
        FrameReader().feed(TOO_LONG)
    stream = asyncio.StreamReader()
    stream.feed_data(TOO_LONG)
    with pytest.raises(ValueError, match=f"frame of {MAX_FRAME_BYTES + 1} bytes exceeds"):
        await MESSAGES.read(stream)


def test_body_can_be_framed_again_as_it_came() -> None:
    """What was cut out of a frame makes the same frame."""
    frame = MESSAGES.encode(Number(7))
    [body] = FrameReader().feed(frame)
    assert frame_of(body) == frame


def test_receiver_passes_bodies_on_and_tells_the_end() -> None:
    """A child process is heard body by body; its end is told once."""
    bodies: list[bytes] = []
    ends: list[str] = []
    receiver = FrameReceiver(bodies.append, lambda: ends.append("end"))
    said = MESSAGES.encode(Word("a")) + MESSAGES.encode(Number(2))
    receiver.data_received(said[:-1])
    assert [MESSAGES.decode(body) for body in bodies] == [Word("a")]
    receiver.data_received(said[-1:])
    assert [MESSAGES.decode(body) for body in bodies] == [Word("a"), Number(2)]
    assert ends == []
    receiver.connection_lost(None)
    assert ends == ["end"]
