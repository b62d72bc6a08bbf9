"""The phases of an engine's start, told so that a slow one is not silent: in the log by default."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Self

from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

# A phase that goes on is told again after so long, with how far it is.
_REPEAT_S = 3.0


def log_phase(phase: str, percent: int, for_s: int) -> None:
    """Log a phase; what is 0 is left out."""
    told = {name: value for name, value in (("percent", percent), ("for_s", for_s)) if value}
    get_logger().info("engine.starting", phase=phase, **told)


class StartPhases:
    """Tells a new phase at once, and every three seconds how far it is.

    `tell` takes the phase, the percents of it that are done, 0 where that is not known, and the
    seconds it has taken.
    """

    def __init__(self, tell: Callable[[str, int, int], None] = log_phase) -> None:
        self._tell_phase = tell
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
        taken_s = round(time.monotonic() - self._began_at)
        self._tell_phase(self._phase, round(100 * self._share), taken_s)
