"""The phases of an engine's start as lines of the log, so that a slow one is not silent."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Self

from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from types import TracebackType

# A phase that goes on is told again after so long, with how far it is.
_REPEAT_S = 3.0


class StartPhases:
    """Logs `engine.starting`: a new phase at once, and every three seconds how far it is."""

    def __init__(self) -> None:
        self._log = get_logger()
        self._phase = "starting the process"
        self._share = 0.0
        self._began_at = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        """Begin with the first phase."""
        self._tell()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End with the start, however that ended."""
        if self._timer is not None:
            self._timer.cancel()

    def note(self, phase: str, share: float) -> None:
        """Take what the engine process says it does, and the share of that which is done."""
        self._share = share
        if phase != self._phase:
            self._phase, self._began_at = phase, time.monotonic()
            self._tell()

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_REPEAT_S, self._tell)
        told: dict[str, object] = {"percent": round(100 * self._share)} if self._share else {}
        taken_s = round(time.monotonic() - self._began_at)
        if taken_s:
            told["for_s"] = taken_s
        self._log.info("engine.starting", phase=self._phase, **told)
