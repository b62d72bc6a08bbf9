"""Frames: how messages travel between the processes of a worker.

A frame is a little-endian uint32 length and a body of msgpack. Both ends of a pipe run the same
version, so a message may change its form with any commit.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

M = TypeVar("M")

_LENGTH = struct.Struct("<I")

# A prompt of 50 MB tokenises to fewer than 64 Mi ids of 5 bytes; anything larger is a broken peer.
MAX_FRAME_BYTES = 1 << 29


class Framing(Generic[M]):
    """One direction of a pipe: its messages to frames, and the bodies of frames to messages."""

    def __init__(self, kinds: Any, enc_hook: Callable[[Any], Any] | None = None) -> None:
        """Frame the messages of the union `kinds`; `enc_hook` packs what msgpack does not know."""
        self._encoder = msgspec.msgpack.Encoder(enc_hook=enc_hook)
        decoder: msgspec.msgpack.Decoder[M] = msgspec.msgpack.Decoder(kinds)
        self.decode: Callable[[bytes], M] = decoder.decode

    def encode(self, message: M) -> bytes:
        """Return a message as a frame."""
        body = self._encoder.encode(message)
        return _LENGTH.pack(len(body)) + body

    async def read(self, stream: asyncio.StreamReader) -> M:
        """Read the next message of a stream.

        Raises: IncompleteReadError at the end of the stream; ValueError as `FrameReader.feed`.
        """
        length = _checked(*_LENGTH.unpack(await stream.readexactly(_LENGTH.size)))
        return self.decode(await stream.readexactly(length))


class FrameReader:
    """Cuts a byte stream into the bodies of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the bodies completed by `chunk`.

        Raises: ValueError on a length past MAX_FRAME_BYTES.
        """
        self._buffer += chunk
        bodies = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            length = _checked(*_LENGTH.unpack_from(self._buffer, start))
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return bodies


def frame_of(body: bytes) -> bytes:
    """Return the frame that a body came in."""
    return _LENGTH.pack(len(body)) + body


def _checked(length: int) -> int:
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"frame of {length} bytes exceeds {MAX_FRAME_BYTES}")
    return length
