"""The frame writer sends frames to another process, many with one system call."""

from __future__ import annotations

import asyncio

# Frames that wait for others of their turn are sent once there is this much of them.
MAX_WAITING_BYTES = 128 * 1024


class FrameWriter:
    """Writes frames in order; frames to a process that is gone are dropped."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._waiting = bytearray()

    def send(self, frame: bytes) -> None:
        """Send a frame at once, behind those that wait."""
        if self._waiting:
            self._waiting += frame
            self._flush()
        elif not self._transport.is_closing():
            self._transport.write(frame)

    def send_soon(self, frame: bytes) -> None:
        """Send a frame together with the others of this turn of the event loop."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting += frame
        if len(self._waiting) >= MAX_WAITING_BYTES:
            self._flush()

    def close(self) -> None:
        """Close the transport and drop the frames that wait."""
        self._waiting.clear()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting and not self._transport.is_closing():
            self._transport.write(bytes(self._waiting))
        self._waiting.clear()
