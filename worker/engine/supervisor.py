"""Keeps one engine process running: notices its death or hang, returns its jobs, starts another."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tokenbus.worker.engine.link import EngineLink
from tokenbus.worker.errors import EngineDied
from tokenbus.worker.held_job import Phase
from tokenbus.worker.hooks import nobody
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.types import EngineStats
    from tokenbus.worker.engine.messages import EngineReady, Report
    from tokenbus.worker.held_jobs import HeldJobs
    from tokenbus.worker.jobs.settlement import Settlement
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.settings import WorkerSettings

_LOOK_INTERVAL_S = 0.5
# An engine that ran this long was healthy: its death does not count towards giving up.
_HEALTHY_S = 60.0
_RESTART_PAUSE_S = 0.5


class EngineSupervisor:
    """Owns the engine link of one worker.

    `on_up` is told each new link before any job may use it.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        held_jobs: HeldJobs,
        metrics: Metrics,
        on_report: Callable[[Report], None],
    ) -> None:
        self._settings = settings
        self._held_jobs = held_jobs
        self._metrics = metrics
        self._on_report = on_report
        self._log = get_logger()
        self.link: EngineLink | None = None
        self.on_up: Callable[[EngineLink], None] = nobody

    @property
    def is_up(self) -> bool:
        """Tell whether jobs may be given to the engine."""
        return self.link is not None and self.link.is_alive

    def moves(self) -> bool:
        """Tell whether the lease may be renewed: nothing runs, or what runs was seen to move."""
        return not self.is_up or not self._is_hung()

    def stats(self) -> EngineStats | None:
        """Return the engine's counters after its last step, None before the first."""
        return self.link.stats if self.link is not None else None

    async def start(self) -> EngineReady:
        """Start the engine.

        Raises: EngineStartFailed, or the engine's own error where it gave one.
        """
        link = EngineLink(self._settings.start_engine(), self._on_report)
        ready = await link.start(self._settings.engine_start_timeout_s)
        self.link = link
        self._log.info(
            "engine.started",
            model=ready.limits.model,
            pages=ready.num_pages,
            page_size=ready.limits.page_size,
            max_model_len=ready.limits.max_model_len,
        )
        return ready

    async def run(self, settlement: Settlement) -> None:
        """Watch the engine for ever; return its jobs and start another when it ends.

        Raises: EngineDied after `max_engine_restarts` deaths in a row, EngineStartFailed.
        """
        num_deaths = 0
        while self.link is not None:
            started_at = time.monotonic()
            died = await self._watch(self.link)
            await self.link.kill()
            self._metrics.engine_deaths += 1
            num_deaths = 1 if time.monotonic() - started_at > _HEALTHY_S else num_deaths + 1
            self._log.error("engine.died", reason=str(died), deaths_in_a_row=num_deaths)
            for job in self._held_jobs.in_phase(Phase.PULLED, Phase.RUNNING):
                settlement.hand_back(job, crashed=job.phase is Phase.RUNNING)
            if num_deaths > self._settings.max_engine_restarts:
                raise died
            await asyncio.sleep(_RESTART_PAUSE_S)
            await self.start()
            self.on_up(self.link)

    async def stop(self) -> None:
        """End the engine process."""
        if self.link is not None:
            await self.link.kill()

    async def _watch(self, link: EngineLink) -> EngineDied:
        """Wait until the engine process ended or hangs."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_INTERVAL_S):
                    return await link.wait_died()
            except TimeoutError:
                if self._is_hung():
                    return EngineDied(f"no step for {link.stalled_s():.0f} s")

    def _is_hung(self) -> bool:
        return self.link is not None and self.link.stalled_s() > self._settings.engine_stall_s
