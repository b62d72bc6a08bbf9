"""The life of a worker as probes, boards and the log are told of it: a phase, and what it is at."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NoReturn

from tokenbus.producer.client.worker_status import WorkerPhase
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

LOOK_INTERVAL_S = 0.5
# A loop that has not turned for so long does nobody's work any more.
STUCK_AFTER_S = 30.0


class WorkerLife:
    """The phase of a worker; read by other threads too.

    It starts, is told when it is `ready` and when it is `draining`; between those `is_up` is asked
    whether there is an engine. `told` says what a start is at, `percent` how far that is.
    """

    def __init__(self, tell_start: Callable[[str, int, int], None]) -> None:
        self.told = "connecting to the server"
        self.percent = 0
        self.began_at = time.monotonic()
        self._tell_start = tell_start
        self._phase = self._logged = WorkerPhase.STARTING
        self._since = self.began_at
        self._beat_at = self.began_at
        self._is_up: Callable[[], bool] = lambda: True
        self._log = get_logger()

    @property
    def phase(self) -> WorkerPhase:
        """Return what the worker is at."""
        if self._phase is WorkerPhase.READY and not self._is_up():
            return WorkerPhase.DOWN
        return self._phase

    @property
    def is_ready(self) -> bool:
        """Tell whether jobs can be given to it now."""
        return self.phase is WorkerPhase.READY

    @property
    def is_stuck(self) -> bool:
        """Tell whether the worker's event loop has stood still for long."""
        return time.monotonic() - self._beat_at > STUCK_AFTER_S

    @property
    def uptime_s(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.began_at

    def starts(self, told: str, percent: int, for_s: int) -> None:
        """Note how the start of an engine goes on, and tell it."""
        self.told, self.percent = told, percent
        self._tell_start(told, percent, for_s)

    def ready(self, is_up: Callable[[], bool]) -> None:
        """Note that jobs are pulled from now on, while there is an engine."""
        self._is_up = is_up
        self._move_to(WorkerPhase.READY)

    def drains(self) -> None:
        """Note that no more jobs are pulled."""
        self._move_to(WorkerPhase.DRAINING)

    async def run(self) -> NoReturn:
        """Beat for ever, and log the phase when it has changed."""
        while True:
            self._beat_at = time.monotonic()
            self._note()
            await asyncio.sleep(LOOK_INTERVAL_S)

    def answer(self) -> dict[str, object]:
        """Return what a probe is told."""
        phase = self.phase
        told: dict[str, object] = {"phase": phase.value, "uptime_s": round(self.uptime_s, 1)}
        if phase in (WorkerPhase.STARTING, WorkerPhase.DOWN):
            told |= {"told": self.told, "percent": self.percent}
        return told

    def _move_to(self, phase: WorkerPhase) -> None:
        self._phase = phase
        self._note()

    def _note(self) -> None:
        phase = self.phase
        if phase is self._logged:
            return
        now = time.monotonic()
        after_s = round(now - self._since, 1)
        self._log.info("worker.phase", phase=phase.value, was=self._logged.value, after_s=after_s)
        self._logged, self._since = phase, now
