"""Shows the worker's gauges to people and metrics: one JSON value with the lease's TTL."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from redis.exceptions import OutOfMemoryError, RedisError

from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held_job import Phase
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.types import EngineStats
    from tokenbus.producer.scripts import Scripts
    from tokenbus.worker.held_jobs import HeldJobs
    from tokenbus.worker.jobs.page_budget import PageBudget
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.session import Session

INTERVAL_S = 1.0


class StatusWriter:
    """Writes `status:<worker>` once a second."""

    def __init__(
        self,
        session: Session,
        scripts: Scripts,
        held_jobs: HeldJobs,
        page_budget: PageBudget,
        worker: str,
        model: str,
        lease_ttl_s: float,
        metrics: Metrics,
        read_stats: Callable[[], EngineStats | None],
    ) -> None:
        self._session = session
        self._scripts = scripts
        self._held_jobs = held_jobs
        self._page_budget = page_budget
        self._worker = worker
        self._model = model
        self._ttl_ms = int(lease_ttl_s * 1000)
        self._metrics = metrics
        self._read_stats = read_stats
        self._log = get_logger()

    async def run(self) -> None:
        """Write for ever."""
        key = self._scripts.keys.of("status", self._worker)
        while True:
            await self._session.opened()
            try:
                await self._session.call(lambda: self._write(key))
            except SessionLost:
                continue
            except RedisError as error:
                self._log.warning("status.write_refused", reason=str(error))
            await asyncio.sleep(INTERVAL_S)

    async def _write(self, key: str) -> None:
        """Write the gauges; a server without memory keeps those of before.

        It refuses to store anything but still runs the scripts that end jobs, so this must not pass
        for a server that is away.
        """
        value = json.dumps(self.gauges(), separators=(",", ":"))
        try:
            await self._scripts.redis.set(key, value, px=self._ttl_ms)
        except OutOfMemoryError as error:
            self._log.warning("status.write_refused", reason=str(error))
            await self._scripts.redis.pexpire(key, self._ttl_ms)

    def gauges(self) -> dict[str, object]:
        """Return the gauges: jobs by phase, pages, the engine's counters, the worker's."""
        stats = self._read_stats()
        return {
            "v": 1,
            "worker": self._worker,
            "model": self._model,
            "page_size": self._page_budget.page_size,
            "total_pages": self._page_budget.total_pages,
            "jobs": {phase.value: len(self._held_jobs.in_phase(phase)) for phase in Phase},
            "engine": None if stats is None else asdict(stats),
            "counters": self._metrics.as_dict(),
        }
