"""The status writer: the worker's gauges as one JSON value with the lease's TTL."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.answers import answer_of
from tokenbus.producer.release import release
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.logs import get_logger
from tokenbus.worker.pool.recent_times import RecentTimes

if TYPE_CHECKING:
    from tokenbus.engine.types import EngineLimits
    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.jobs.page_costs import PageCosts
    from tokenbus.worker.life import WorkerLife

INTERVAL_S = 1.0


class StatusWriter:
    """Writes `status:<worker>` once a second."""

    def __init__(
        self,
        member: PoolMember,
        *,
        costs: PageCosts,
        engine: CurrentEngine,
        life: WorkerLife,
        limits: EngineLimits,
    ) -> None:
        self._session = member.session
        self._scripts = member.scripts
        self._held_jobs = member.held_jobs
        self._worker = member.worker
        self._metrics = member.metrics
        self._ttl_ms = int(member.settings.lease_ttl_s * 1000)
        self._costs = costs
        self._engine = engine
        self._life = life
        self._recent_times = RecentTimes(member.metrics)
        self._limits = limits
        self._names = member.settings.model_names
        # When the engine's tokens were counted last, and how many there were: generated ones, and
        # those of prompts.
        self._counted = (time.monotonic(), 0, 0)
        self._tokens_per_s = self._prompt_tokens_per_s = 0.0
        self._log = get_logger()

    async def run(self) -> None:
        """Write for ever."""

        async def write() -> None:
            await self._session.call(self._write)

        await self._session.every(INTERVAL_S, write, refused=self._note_refused)

    def _note_refused(self, error: RedisError) -> None:
        self._log.warning("status.write_refused", reason=answer_of(error).told)

    async def _write(self) -> None:
        """Write the gauges; a server without memory keeps those of before.

        It refuses to store anything but still runs the scripts that end jobs, so this must not pass
        for a server that is away.
        """
        self._count_tokens()
        key = self._scripts.keys.of("status", self._worker)
        value = json.dumps(self.gauges(), separators=(",", ":"))
        try:
            await self._scripts.redis.set(key, value, px=self._ttl_ms)
        except RedisError as error:
            if answer_of(error).code != "OOM":
                raise
            self._note_refused(error)
            await self._scripts.redis.pexpire(key, self._ttl_ms)

    def _count_tokens(self) -> None:
        """Take the rates of tokens since the last look; another engine begins at 0."""
        stats, now = self._engine.stats(), time.monotonic()
        generated = prompt = 0
        if stats is not None:
            generated = stats.generated_tokens_total
            prompt = stats.prompt_tokens_total + stats.cached_tokens_total
        at, generated_before, prompt_before = self._counted
        if now > at:
            self._tokens_per_s = round(max(0, generated - generated_before) / (now - at), 1)
            self._prompt_tokens_per_s = round(max(0, prompt - prompt_before) / (now - at), 1)
        self._counted = (now, generated, prompt)

    def gauges(self) -> dict[str, object]:
        """Return the gauges: jobs by phase, pages, recent times, the counters of both parts."""
        stats, outage = self._engine.stats(), self._engine.outage
        return {
            "v": 1,
            "worker": self._worker,
            "version": release(),
            "phase": self._life.phase.value,
            "uptime_s": round(self._life.uptime_s, 1),
            "model": self._limits.model,
            "checkpoint": self._limits.checkpoint,
            # Under which names requests may ask for it, and how long a text of it may be.
            "names": self._names,
            "max_model_len": self._limits.max_model_len,
            "page_size": self._costs.page_size,
            "total_pages": self._costs.total_pages,
            "jobs": {phase.value: len(self._held_jobs.in_phase(phase)) for phase in Phase},
            # Whether it can run jobs now, and if not, why and since how many engines.
            "ready": self._engine.is_up,
            "outage": None if outage is None else asdict(outage),
            # Generated, and taken in as prompts, in the last second or so.
            "tokens_per_s": self._tokens_per_s,
            "prompt_tokens_per_s": self._prompt_tokens_per_s,
            "latencies": self._recent_times.look(),
            "engine": None if stats is None else stats._asdict(),
            "counters": self._metrics.as_dict(),
        }
