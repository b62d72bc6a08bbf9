"""The engine supervisor notices that the engine process died or hangs, and starts another."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from tokenbus.worker.engine.link import EngineLink
from tokenbus.worker.errors import EngineDied
from tokenbus.worker.logs import get_logger
from tokenbus.worker.messages.engine import Beat, StartEngine

if TYPE_CHECKING:
    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.messages.engine import EngineReady, Report
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.settings import WorkerSettings

_LOOK_INTERVAL_S = 0.5
# An engine that ran this long was healthy: its death does not count towards giving up.
_HEALTHY_S = 60.0
_RESTART_PAUSE_S = 0.5


class EngineEvents(Protocol):
    """What comes from the engine, for the jobs that run in it."""

    def take(self, report: Report) -> None:
        """Handle one report of the engine, in its order."""
        ...

    def died(self) -> None:
        """Give up what ran in the engine: it has ended."""
        ...

    def restarted(self, ready: EngineReady) -> None:
        """Begin with an engine that holds nothing."""
        ...


class EngineSupervisor:
    """Starts the processes that are the current engine, one after another."""

    def __init__(self, settings: WorkerSettings, engine: CurrentEngine, metrics: Metrics) -> None:
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
        link = EngineLink(build, self._take)
        ready = await link.start(self._settings.engine_start_timeout_s)
        self._engine.replace(link)
        self._log.info(
            "engine.started",
            model=ready.limits.model,
            pages=ready.num_pages,
            page_size=ready.limits.page_size,
            max_model_len=ready.limits.max_model_len,
        )
        return ready

    async def run(self, events: EngineEvents) -> None:
        """Watch the engine for ever and tell what comes from it; start another when it ends.

        Raises: EngineDied after `max_engine_restarts` deaths in a row, EngineStartFailed.
        """
        self._events = events
        num_deaths = 0
        while True:
            link, started_at = self._engine.link, time.monotonic()
            died = await self._watch(link)
            await link.kill()
            self._metrics.engine_deaths += 1
            num_deaths = 1 if time.monotonic() - started_at > _HEALTHY_S else num_deaths + 1
            self._log.error("engine.died", reason=str(died), deaths_in_a_row=num_deaths)
            events.died()
            if num_deaths > self._settings.max_engine_restarts:
                raise died
            await asyncio.sleep(_RESTART_PAUSE_S)
            events.restarted(await self.start())

    async def _watch(self, link: EngineLink) -> EngineDied:
        """Wait until the engine process ended or hangs."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_INTERVAL_S):
                    return await link.wait_died()
            except TimeoutError:
                if self._engine.is_hung:
                    return EngineDied(f"no step for {link.stalled_s():.0f} s")

    def _take(self, report: Report) -> None:
        """Pass a report on; before `run` the engine has no job and only beats."""
        if self._events is not None:
            self._events.take(report)
        elif not isinstance(report, Beat):
            raise TypeError(f"an engine without jobs reported {type(report).__name__}")
