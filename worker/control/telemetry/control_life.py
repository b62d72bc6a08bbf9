"""The life of a control process, as its probes are told of it."""

from __future__ import annotations

import asyncio
import time
from typing import NoReturn

_BEAT_INTERVAL_S = 1.0
# A loop that has not turned for so long does nobody's work any more.
_STUCK_AFTER_S = 60.0


class ControlLife:
    """It connects, and works from `works` on; read by other threads too."""

    def __init__(self) -> None:
        self._began_at = self._beat_at = time.monotonic()
        self.is_ready = False

    @property
    def is_stuck(self) -> bool:
        """Tell whether the event loop has stood still for long."""
        return time.monotonic() - self._beat_at > _STUCK_AFTER_S

    def works(self) -> None:
        """Note that the process does its work from now on."""
        self.is_ready = True

    async def run(self) -> NoReturn:
        """Beat for ever."""
        while True:
            self._beat_at = time.monotonic()
            await asyncio.sleep(_BEAT_INTERVAL_S)

    def answer(self) -> dict[str, object]:
        """Return what a probe is told."""
        phase = "ready" if self.is_ready else "connecting to the server"
        return {"phase": phase, "uptime_s": round(time.monotonic() - self._began_at, 1)}
