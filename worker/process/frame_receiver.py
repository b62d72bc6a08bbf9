"""The frame receiver: frames of a child process, received on the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.worker.process.frames import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable


class FrameReceiver(asyncio.Protocol):
    """Passes on the body of each frame, and that the process has hung up."""

    def __init__(self, on_body: Callable[[bytes], None], on_lost: Callable[[], None]) -> None:
        self._frames = FrameReader()
        self._on_body = on_body
        self._on_lost = on_lost

    def data_received(self, data: bytes) -> None:
        """Pass on every body that `data` completes."""
        for body in self._frames.feed(data):
            self._on_body(body)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Tell that the process has hung up."""
        self._on_lost()
