"""The crons of the service, run by arq: each tick once, however many services there are.

arq gives a tick's job an id, so that services which ask for it at the same time get one. A service
that asks late, after the job ran, would bring it back a minute later; so each tick is also taken
with the server before it runs. A chore is taken first: at most once, the next tick makes up for it.
The table's jobs are taken last and submitted under ids made from the tick: a service that dies
between is repeated by arq, and the pool knows the ids. No request can ask for such an id, so that
nobody is there before the tick.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from arq.cron import cron
from arq.worker import Retry, Worker

from tokenbus.producer.contract.new_job import digest_of
from tokenbus.producer.errors import ProducerError, QueueFull, RequestInvalid, ServerError
from tokenbus.worker.control.arq_worker import HEALTH_INTERVAL_S
from tokenbus.worker.control.cron_lines import LineCron
from tokenbus.worker.control.metrics import ControlMetrics
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from arq.connections import ArqRedis
    from arq.cron import CronJob

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.contract.schema import JobRequest
    from tokenbus.worker.control.housekeeping import Housekeeping
    from tokenbus.worker.control.timetable import Entry, Timetable

# Longer than any chore takes; a chore that hangs is cancelled.
CHORE_TIMEOUT_S = 120
TABLE_TIMEOUT_S = 300
TABLE_MAX_TRIES = 100
_RETRY_S = 10.0
# Each try has waited for the server before.
_OUTAGE_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Chore:
    """A chore and the times at which it is done, as `arq.cron` takes them."""

    name: str
    run: Callable[[], Awaitable[None]]
    at: dict[str, Any]


@dataclass(frozen=True, slots=True)
class CronTick:
    """The names of the jobs of one tick: no request can ask for an id with a `~` in it."""

    cron: str
    stamp: str

    def job_id(self, number: int) -> str:
        """Name the job of the tick's request `number`, from 1."""
        return f"cron~{self.cron}~{self.stamp}~{number}"

    def earlier_id(self, number: int) -> str:
        """Return how version 1 named it."""
        return f"cron-{self.cron}-{self.stamp}-{number}"


def chores_of(house: Housekeeping) -> list[Chore]:
    """List the chores of a pool."""
    return [
        Chore("pressure", house.publish_pressure, {"second": set(range(0, 60, 5))}),
        Chore("reap", house.reap, {"second": {2, 17, 32, 47}}),
        Chore("retain", house.retain, {"minute": {7, 37}}),
        Chore("digest", house.digest, {"minute": 0}),
        Chore("close-hour", house.close_hour, {"minute": 1}),
    ]


class Crons:
    """Makes arq workers that run the crons of one pool."""

    def __init__(
        self,
        client: AsyncClient,
        chores: list[Chore],
        *,
        table: Timetable,
        folder: Path,
        metrics: ControlMetrics | None = None,
    ) -> None:
        self.metrics = metrics or ControlMetrics()
        self._client = client
        self._chores = chores
        self._table = table
        self._folder = folder
        self._log = get_logger()

    @property
    def queue(self) -> str:
        """Return the arq queue of the pool's crons."""
        return f"arq:tokenbus-control:{self._client.scripts.keys.pool}"

    def make_worker(self, redis: ArqRedis) -> Worker:
        """Make a worker; arq uses a worker once."""
        jobs = [self._chore(chore) for chore in self._chores]
        jobs += [self._entry(entry) for entry in self._table.cron]
        # arq takes any tzinfo and declares the class of fixed offsets.
        zone: Any = ZoneInfo(self._table.timezone)
        return Worker(
            queue_name=self.queue,
            cron_jobs=jobs,
            redis_pool=redis,
            handle_signals=False,
            max_jobs=len(jobs) + 4,
            job_timeout=TABLE_TIMEOUT_S,
            health_check_interval=HEALTH_INTERVAL_S,
            job_serializer=redis.job_serializer,
            job_deserializer=redis.job_deserializer,
            timezone=zone,
            log_results=False,
        )

    def _chore(self, chore: Chore) -> CronJob:
        async def run(ctx: dict[str, Any]) -> None:
            tick_ms = tick_of(ctx)
            if await self._client.scripts.control.take_tick(chore.name, tick_ms):
                began = time.monotonic()
                await chore.run()
                self._ran(chore.name, tick_ms, began)

        name = self._arq_name(chore.name)
        return cron(run, name=name, timeout=CHORE_TIMEOUT_S, **chore.at)

    def _entry(self, entry: Entry) -> CronJob:
        name = f"table:{entry.name}"

        async def run(ctx: dict[str, Any]) -> None:
            control, tick_ms = self._client.scripts.control, tick_of(ctx)
            last_ms = await control.last_tick(name)
            if last_ms is not None and last_ms >= tick_ms:
                return
            began = time.monotonic()
            await self._submit(entry, tick_ms)
            if await control.take_tick(name, tick_ms):
                self._ran(name, tick_ms, began)

        line = entry.at if isinstance(entry.at, str) else None
        at = {} if isinstance(entry.at, str) else entry.at.fields()
        job = cron(
            run,
            name=self._arq_name(name),
            timeout=TABLE_TIMEOUT_S,
            max_tries=TABLE_MAX_TRIES,
            **at,
        )
        return job if line is None else LineCron.of(job, line)

    def _arq_name(self, name: str) -> str:
        """Return a cron's name with its pool: arq's job ids are one space for all queues."""
        return f"{self.queue}:{name}"

    async def _submit(self, entry: Entry, tick_ms: int) -> None:
        """Submit the jobs of one tick. Raises: Retry while they cannot all be submitted."""
        try:
            requests = entry.build(self._folder)
        except (RequestInvalid, OSError) as error:
            self._log.error("cron.unreadable", cron=entry.name, reason=str(error))
            raise Retry(_RETRY_S) from error
        stamp = datetime.fromtimestamp(tick_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
        tick = CronTick(entry.name, stamp)
        named = {tick.job_id(number): request for number, request in enumerate(requests, 1)}
        earlier = await self._submitted_before(tick, requests)
        refused = await self._refused(
            {job_id: request for job_id, request in named.items() if job_id not in earlier}
        )
        waits = [error.retry_after_s for error in refused if isinstance(error, QueueFull)]
        lost = [error for error in refused if not isinstance(error, QueueFull)]
        if lost:
            # A file that changed under a tick conflicts with itself; its first version stands.
            self._log.error("cron.refused", cron=entry.name, jobs=len(lost), first=str(lost[0]))
        if waits:
            raise Retry(max(waits))

    async def _submitted_before(self, tick: CronTick, requests: list[JobRequest]) -> set[str]:
        """List the jobs of a tick that a service of version 1 has submitted under its names."""
        return {
            tick.job_id(number)
            for number, request in enumerate(requests, 1)
            if await self._client.scripts.queue.holds_inherited(
                tick.earlier_id(number), request.tenant, digest_of(request)
            )
        }

    async def _refused(self, requests: dict[str, JobRequest]) -> list[ProducerError]:
        try:
            replies = await self._client.submit_many(
                list(requests.values()), reserved_ids=list(requests)
            )
        except ServerError as error:
            raise Retry(_OUTAGE_RETRY_S) from error
        refused = [reply for reply in replies if isinstance(reply, ProducerError)]
        if any(isinstance(reply, ServerError) for reply in refused):
            # Away in the middle: the tick's names make it safe to submit all again.
            raise Retry(_OUTAGE_RETRY_S)
        return refused

    def _ran(self, name: str, tick_ms: int, began: float) -> None:
        took_ms = int((time.monotonic() - began) * 1000)
        self.metrics.crons[name] += 1
        self._log.debug("cron.ran", cron=name, tick_ms=tick_ms, took_ms=took_ms)


def tick_of(ctx: dict[str, Any]) -> int:
    """Return the time a cron's job stands for, in ms: arq's id of it is `<name>:<ms>`."""
    return int(str(ctx["job_id"]).rsplit(":", 1)[1])
