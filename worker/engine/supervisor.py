"""The engine supervisor notices that the engine process died or hangs, and starts another."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from tokenbus.engine.errors import EngineError
from tokenbus.worker.engine.current_engine import Outage
from tokenbus.worker.engine.link import EngineLink
from tokenbus.worker.engine.start_phases import StartPhases, log_phase
from tokenbus.worker.errors import DeathCause, EngineDied, WorkerError
from tokenbus.worker.logs import get_logger
from tokenbus.worker.messages.engine import Beat, StartEngine

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.messages.engine import EngineReady, Report
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.settings import WorkerSettings

# Between two looks for a hang; a death is told at once.
_LOOK_INTERVAL_S = 0.5
# A process that a signal has stopped for so long is not meant to go on.
_STOPPED_S = 3.0
# An engine that ran this long was healthy: its death begins a new row.
_HEALTHY_S = 60.0
# The pause doubles with every engine of a row: after the sixth it is as long as it gets, so that a
# device that comes back is used again within half a minute.
_FIRST_PAUSE_S, _MAX_PAUSE_S, _MAX_DOUBLINGS = 0.5, 30.0, 6


class EngineEvents(Protocol):
    """What comes from the engine, for the jobs that run in it."""

    def take(self, report: Report) -> None:
        """Handle one report of the engine, in its order."""
        ...

    def died(self) -> bool:
        """Give up what ran in the engine: it has ended.

        Returns: whether the search for the job to blame goes on with the next engine.
        """
        ...

    def restarted(self, ready: EngineReady) -> None:
        """Begin with an engine that holds nothing."""
        ...


class EngineSupervisor:
    """Starts the processes that are the current engine, one after another.

    `tell_phase` hears how their starts go on.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        engine: CurrentEngine,
        metrics: Metrics,
        tell_phase: Callable[[str, int, int], None] = log_phase,
    ) -> None:
        self._tell_phase = tell_phase
        self._settings = settings
        self._engine = engine
        self._metrics = metrics
        self._events: EngineEvents | None = None
        self._log = get_logger()

    async def start(self) -> EngineReady:
        """Start an engine process and make it the current one.

        Raises: EngineStartFailed, or the engine's own error where it gave one.
        """
        settings = self._settings
        build = StartEngine.of(settings.engine_config(), settings.step_log)
        with StartPhases(self._tell_phase) as phases:
            link = EngineLink(build, self._take, phases.note)
            ready = await link.start(self._settings.engine_start_timeout_s)
        self._engine.replace(link)
        self._log.info(
            "engine.started",
            model=ready.limits.model,
            pages=ready.num_pages,
            page_size=ready.limits.page_size,
            max_model_len=ready.limits.max_model_len,
            sampling_defaults=ready.limits.sampling_defaults.given(),
        )
        if ready.topology:
            self._log.info("ranks.started", topology=ready.topology)
        return ready

    async def run(self, events: EngineEvents) -> None:
        """Watch the engine for ever and tell what comes from it; start another when it ends.

        No number of deaths or failed starts ends it. Pauses grow while they come in a row that
        finds nobody to blame.
        """
        self._events = events
        num_in_a_row = 0
        while True:
            link, started_at = self._engine.link, time.monotonic()
            found = await self._watch(link)
            link.end()
            # Its jobs go on elsewhere while its devices are let go of, which may take seconds.
            makes_headway = events.died()
            died = found or await link.wait_died()
            await link.kill()
            if makes_headway or time.monotonic() - started_at > _HEALTHY_S:
                num_in_a_row = 0
            if not makes_headway:
                num_in_a_row += 1
            self._metrics.engine_deaths += 1
            self._note("engine.died", died, num_in_a_row)
            while (ready := await self._start_again(num_in_a_row)) is None:
                num_in_a_row += 1
            events.restarted(ready)

    async def _start_again(self, num_in_a_row: int) -> EngineReady | None:
        """Wait as long as the row asks for and start an engine; None where none came up."""
        await asyncio.sleep(_pause_s(num_in_a_row))
        try:
            ready = await self.start()
        except (WorkerError, EngineError, OSError) as error:
            failed = EngineDied(str(error), DeathCause.START)
            self._note("engine.start_failed", failed, num_in_a_row + 1)
            return None
        self._metrics.engine_restarts += 1
        return ready

    def _note(self, event: str, died: EngineDied, num_in_a_row: int) -> None:
        """Say what an engine died of where people and metrics look, and when the next comes."""
        pause_s = _pause_s(num_in_a_row)
        self._metrics.engine_ends[died.cause] += 1
        self._engine.outage = Outage(died.cause, str(died), num_in_a_row, pause_s)
        is_failing = num_in_a_row > self._settings.max_engine_restarts
        self._log.error(
            event,
            cause=died.cause.value,
            reason=str(died),
            in_a_row=num_in_a_row,
            restart_in_s=pause_s,
            failing=is_failing,
        )

    async def _watch(self, link: EngineLink) -> EngineDied | None:
        """Wait until the engine process hangs or was stopped; None once it ends by itself."""
        stopped_at: float | None = None
        while True:
            try:
                async with asyncio.timeout(_LOOK_INTERVAL_S):
                    await link.wait_over()
                    return None
            except TimeoutError:
                now = time.monotonic()
                if self._engine.is_hung:
                    return EngineDied(f"no step for {link.stalled_s():.0f} s", DeathCause.HANG)
                stopped_at = (stopped_at or now) if link.is_stopped else None
                if stopped_at is not None and now - stopped_at > _STOPPED_S:
                    return EngineDied(f"stopped for {now - stopped_at:.0f} s", DeathCause.HANG)

    def _take(self, report: Report) -> None:
        """Pass a report on; before `run` the engine has no job and only beats."""
        if self._events is not None:
            self._events.take(report)
        elif not isinstance(report, Beat):
            raise TypeError(f"an engine without jobs reported {type(report).__name__}")


def _pause_s(num_in_a_row: int) -> float:
    """Return the pause before the next engine, in seconds."""
    doublings = min(num_in_a_row - 1, _MAX_DOUBLINGS)
    return min(_FIRST_PAUSE_S * 2.0**doublings, _MAX_PAUSE_S) if num_in_a_row else 0.0
