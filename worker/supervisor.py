"""The life of a worker: start, run, quiet, stop.

    run     pull, compute, publish
    quiet   pull no more; the head-of-line job is handed back, what runs goes on
    stop    quiet, then at the deadline everything is handed back with its log; readers see a pause

The first SIGTERM or SIGINT stops with the configured deadline, the second sets the deadline to
now. A worker that dies instead leaves everything to its lease: others take over.

It is one file because each step of the stop undoes one of the start.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import signal
import socket
import uuid
from typing import TYPE_CHECKING, Self

from tokenbus.producer import gc
from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.scripts.rights import UserRole, check_rights
from tokenbus.producer.server.connection import make_redis, open_server, retrying
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.telemetry.tenant_labels import TenantLabels
from tokenbus.producer.wait_notice import waiting_told
from tokenbus.worker import logs
from tokenbus.worker.engine.current_engine import CurrentEngine
from tokenbus.worker.engine.start_phases import log_phase
from tokenbus.worker.engine.supervisor import EngineSupervisor
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.held.held_jobs import HeldJobs
from tokenbus.worker.held.job_traces import JobTraces
from tokenbus.worker.life import WorkerLife
from tokenbus.worker.metrics import Metrics
from tokenbus.worker.pool.start_status import StartStatus
from tokenbus.worker.start_check import check_worker
from tokenbus.worker.stop_request import StopRequest
from tokenbus.worker.tokenizer import import_library
from tokenbus.worker.tracing.span_link import SpanLink
from tokenbus.worker.tracing.traced_job import JobSpans, SpanDestination

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from redis.asyncio import Redis

    from tokenbus.engine.types import EngineStats
    from tokenbus.producer.server.connection import Server
    from tokenbus.worker.assembly import Parts
    from tokenbus.worker.messages.engine import EngineReady
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.telemetry.exporter import Exporter

# Between the deadline and the exit: hand-backs of a full worker take a fraction of it.
HAND_BACK_S = 1.5


class _Drained(Exception):
    """Ends the parts of a worker that has nothing left to do."""


class Worker:
    """One worker; as a context manager it runs beside a client in the same process.

    The engine has its own process in any case. Entering returns once jobs are being pulled;
    leaving stops with deadline 0. `tell_phase` hears how the engine's start goes on: the phase, its
    percents, its seconds.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        redis_url: str | None = None,
        *,
        tell_phase: Callable[[str, int, int], None] = log_phase,
    ) -> None:
        self.settings = settings
        self.name = f"{socket.gethostname()}-{uuid.uuid4().hex[:12]}"
        tenants = TenantLabels(settings.metrics_tenants, settings.metrics_tenant_names)
        self._metrics = Metrics(tenants=tenants)
        self._url = redis_url or settings.redis_url
        self._log = logs.get_logger()
        self._held_jobs = HeldJobs()
        self._engine = CurrentEngine(settings.engine_stall_s)
        self._life = WorkerLife(tell_phase)
        self._engine_supervisor = EngineSupervisor(
            settings, self._engine, self._metrics, self._life.starts
        )
        self._exporter: Exporter | None = None
        self._span_link = _span_link(settings, self.name)
        self._parts: Parts | None = None
        self._main: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._stop = StopRequest()

    @property
    def metrics(self) -> Metrics:
        """Return what it has counted, as of now."""
        self._metrics.count()
        return self._metrics

    @property
    def stats(self) -> EngineStats | None:
        """Return the engine's counters after its last step."""
        return self._engine.stats()

    @property
    def has_ended(self) -> bool:
        """Tell whether a worker that was entered runs no more, by request or by an error."""
        return self._main is not None and self._main.done()

    @property
    def num_held(self) -> int:
        """Count the jobs that this worker holds."""
        return len(self._held_jobs)

    @property
    def _model(self) -> str:
        """Name of the model; the null engine has none."""
        return "null" if self.settings.engine == "null" else self.settings.model

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine."""
        return self._engine.pid

    async def __aenter__(self) -> Self:
        """Start, and return when the worker pulls.

        Raises: what keeps it from starting: ServerError, EngineError or WorkerError.
        """
        self._started = asyncio.get_running_loop().create_future()
        self._main = asyncio.create_task(self.run())
        await asyncio.wait([self._main, self._started], return_when=asyncio.FIRST_COMPLETED)
        if self._main.done():
            await self._main
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop at once and wait for the end."""
        self.request_stop(now=True)
        if self._main is not None:
            await self._main

    def request_stop(self, *, now: bool = False) -> None:
        """Ask the worker to drain; asked again, or with `now`, the deadline is over."""
        self._stop.make(now=now)

    async def run(self) -> None:
        """Run until asked to stop.

        Raises: the error that ended it, alone, whatever else it took down.
        """
        logs.configure_once(self.settings.log_level, self.settings.log_format)
        logs.bind(worker_id=self.name)
        try:
            await self._run()
        except BaseExceptionGroup as group:
            raise _first_error(group) from group

    async def _run(self) -> None:
        """Run, and answer scrapes and probes from the first moment to the last."""
        async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            await self._tell(stack)
            beside = [tasks.create_task(self._life.run())]
            if self._span_link is not None:
                beside.append(tasks.create_task(self._span_link.run()))
            try:
                await self._run_connected()
            finally:
                for task in beside:
                    task.cancel()

    async def _tell(self, stack: contextlib.AsyncExitStack) -> None:
        """Serve metrics where a port is set; only then their library is imported."""
        port = self.settings.metrics_port
        if port is None:
            return
        from tokenbus.worker.telemetry.exporter import Exporter
        from tokenbus.worker.telemetry.telemetry_server import telemetry_served

        self._exporter = Exporter(self.settings, self._life)
        await stack.enter_async_context(
            telemetry_served(self._exporter, self._life, self.settings.metrics_host, port)
        )

    async def _run_connected(self) -> None:
        settings = self.settings
        url = ServerUrl.parse(self._url)
        self._log.info("worker.starting", pool=settings.pool, model=self._model, server=str(url))
        with waiting_told(
            lambda: self._log.warning(
                "server.awaited",
                reason=f"no server at {url} yet, trying for {settings.connect_timeout_s:g} s",
            )
        ):
            server = await self._stop.unless_made(
                open_server(
                    self._url,
                    retry_for_s=settings.connect_timeout_s,
                    call_timeout_s=settings.call_timeout_s,
                )
            )
        if server is None:
            return
        blocking = make_redis(server.effective_url, settings.call_timeout_s)
        try:
            parts = await self._stop.unless_made(self._prepare(server, blocking))
            if parts is not None:
                await self._serve(parts)
                await self._take_leave(server)
        finally:
            await self._engine.kill()
            if self._parts is not None:
                await self._parts.publishers.stop()
            await blocking.aclose()
            await server.close()
            self._log.info("worker.stopped", jobs_left=len(self._held_jobs))

    async def _prepare(self, server: Server, blocking: Redis) -> Parts:
        """Check the rights, start the engine, make the parts and reconcile for the first time."""
        keys, shown_url = Keys(self.settings.pool), str(server.url)
        await retrying(
            lambda: check_rights(server.redis, keys, UserRole.WORKER, shown_url=shown_url),
            server.url,
            self.settings.connect_timeout_s,
        )
        status = StartStatus(
            server.redis,
            keys,
            worker=self.name,
            model=self._model,
            life=self._life,
            ttl_s=self.settings.lease_ttl_s,
        )
        is_ready = False
        try:
            async with asyncio.TaskGroup() as tasks:
                telling = tasks.create_task(status.run())
                parts = await self._prepare_parts(server, blocking, await self._start_engine())
                telling.cancel()
            is_ready = True
            return parts
        finally:
            await status.end(is_ready=is_ready)

    async def _prepare_parts(self, server: Server, blocking: Redis, ready: EngineReady) -> Parts:
        """Make the parts around an engine that is there, and reconcile for the first time."""
        from tokenbus.worker.assembly import assemble, join_pool

        member = join_pool(
            self.settings,
            server,
            worker=self.name,
            held_jobs=self._held_jobs,
            metrics=self._metrics,
            traces=JobTraces((self._span_link or JobSpans(self.settings.pool, self.name)).tell),
        )
        parts = await assemble(
            member,
            server=server,
            blocking=blocking,
            engine=self._engine,
            life=self._life,
            ready=ready,
        )
        self._parts = parts
        await parts.lease.open(self.settings.connect_timeout_s)
        if self._exporter is not None:
            self._exporter.attach(
                member, self._engine, model=ready.limits.model, total_pages=ready.num_pages
            )
        if self._started is None:
            gc.freeze_startup_objects()
        return parts

    async def _start_engine(self) -> EngineReady:
        """Start the engine, and import meanwhile what the worker needs once it is there."""
        async with asyncio.TaskGroup() as tasks:
            has_model = self.settings.engine != "null"
            tasks.create_task(asyncio.to_thread(_import_parts, has_model=has_model))
            starting = tasks.create_task(self._engine_supervisor.start())
        return starting.result()

    async def _serve(self, parts: Parts) -> None:
        """Run all parts until the worker is drained."""
        try:
            async with asyncio.TaskGroup() as tasks:
                parts.settlement.run_in(tasks)
                for part in (
                    parts.publishers,
                    parts.lease,
                    parts.inbox,
                    parts.questions,
                    parts.reaper,
                    parts.cancel_listener,
                    parts.corpus,
                    parts.status_writer,
                ):
                    tasks.create_task(part.run())
                tasks.create_task(self._engine_supervisor.run(parts.engine_reports))
                pull_loop = tasks.create_task(parts.pull_loop.run())
                self._life.ready(lambda: self._engine.is_up)
                self._log.info("worker.started", pool=self.settings.pool)
                if self._started is not None:
                    self._started.set_result(None)
                await self._stop.made()
                pull_loop.cancel()
                self._life.drains()
                leaving = tasks.create_task(parts.lease.leave())
                await self._drain(parts)
                # A worker that holds nothing is drained before it has said that it leaves.
                await asyncio.wait([leaving], timeout=HAND_BACK_S)
                raise _Drained
        except* _Drained:
            self._log.info("worker.drained", jobs_left=len(self._held_jobs))

    async def _drain(self, parts: Parts) -> None:
        """Let running jobs end until the deadline, then hand everything back."""
        deadline_s = 0.0 if self._stop.is_now else self.settings.drain_deadline_s
        self._log.info("worker.draining", jobs=len(self._held_jobs), deadline_s=deadline_s)
        for job in self._held_jobs.in_phase(Phase.PULLED):
            parts.settlement.hand_back(job, why="drain")
        await self._stop.until_now(self._held_jobs.wait_empty(), deadline_s)
        for job in self._held_jobs.in_phase(Phase.PULLED, Phase.RUNNING):
            parts.settlement.hand_back(job, why="drain")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HAND_BACK_S):
                await self._held_jobs.wait_empty()

    async def _take_leave(self, server: Server) -> None:
        """Give up the lease, so that what could not be handed back is taken over at once."""
        keys = Keys(self.settings.pool)
        redis: Redis = server.redis
        try:
            async with asyncio.timeout(0.5):
                await redis.delete(keys.of("alive", self.name), keys.of("status", self.name))
        except SERVER_ERRORS as error:
            self._log.warning("lease.not_given_up", reason=answer_of(error).told)


def _span_link(settings: WorkerSettings, worker: str) -> SpanLink | None:
    """Return the way to the process that sends spans, where a collector is set."""
    if settings.trace_endpoint is None:
        return None
    return SpanLink(
        SpanDestination(
            endpoint=settings.trace_endpoint,
            pool=settings.pool,
            worker=worker,
            log_level=settings.log_level,
        )
    )


def _import_parts(*, has_model: bool) -> None:
    """Import what takes half of a start, after the pool was told that this worker comes."""
    importlib.import_module("tokenbus.worker.assembly")
    import_library(has_model=has_model)


def run_worker(settings: WorkerSettings) -> int:
    """Run a worker in the foreground until it is told to stop; return 0 after an orderly end.

    Raises: ServerError, EngineError or WorkerError if it could not start or go on.
    """
    logs.configure(settings.log_level, settings.log_format)
    logs.take_library_logs()
    ServerUrl.parse(settings.redis_url).refuse_private("worker")
    check_worker(settings)
    return asyncio.run(_run_in_foreground(settings))


async def _run_in_foreground(settings: WorkerSettings) -> int:
    worker = Worker(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, worker.request_stop)
    await worker.run()
    return 0


def _first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first single error inside a group."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
