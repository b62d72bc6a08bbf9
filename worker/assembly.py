"""Puts the parts of a worker together once server and engine are there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.producer.scripts import Bounds, Scripts
from tokenbus.producer.scripts.completion import JobCompletion, Retention
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.jobs.engine_reports import EngineReports
from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
from tokenbus.worker.jobs.page_budget import PageBudget
from tokenbus.worker.jobs.prompt import PromptPreparer
from tokenbus.worker.jobs.settlement import Settlement
from tokenbus.worker.jobs.start import Starter
from tokenbus.worker.pool.cancel_listener import CancelListener
from tokenbus.worker.pool.doorbell import Doorbell
from tokenbus.worker.pool.inbox import Inbox
from tokenbus.worker.pool.lease import Lease
from tokenbus.worker.pool.parking import Parking
from tokenbus.worker.pool.pull_loop import PullLoop
from tokenbus.worker.pool.reaper import Reaper
from tokenbus.worker.pool.status_writer import StatusWriter
from tokenbus.worker.publishing.build import start_publishers
from tokenbus.worker.session import Session
from tokenbus.worker.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.server.connection import Server
    from tokenbus.worker.engine.link import EngineLink
    from tokenbus.worker.engine.messages import EngineReady, Report
    from tokenbus.worker.engine.supervisor import EngineSupervisor
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.held_jobs import HeldJobs
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.publishing.publisher_pool import PublisherPool
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.telemetry.exporter import Exporter


@dataclass(slots=True)
class Parts:
    """The parts of a running worker, wired to each other."""

    session: Session
    held_jobs: HeldJobs
    page_budget: PageBudget
    prefixes: HeldPrefixes
    settlement: Settlement
    publishers: PublisherPool
    starter: Starter
    engine_reports: EngineReports
    lease: Lease
    pull_loop: PullLoop
    inbox: Inbox
    reaper: Reaper
    cancel_listener: CancelListener
    status_writer: StatusWriter
    exporter: Exporter | None

    def use_engine(self, link: EngineLink) -> None:
        """Let a new engine take the place of the one before."""
        self.starter.engine = link
        self.engine_reports.engine = link
        self.page_budget.available_pages = link.ready.num_pages
        self.prefixes.clear()
        self.pull_loop.pages_changed()

    def take_report(self, report: Report) -> None:
        """Handle one report of the engine."""
        self.engine_reports.take(report)


async def assemble(
    settings: WorkerSettings,
    server: Server,
    blocking: Redis,
    engine: EngineSupervisor,
    ready: EngineReady,
    held_jobs: HeldJobs,
    worker: str,
    metrics: Metrics,
) -> Parts:
    """Build the parts; `blocking` is a client for calls that wait on the server."""
    limits = ready.limits
    tokenizer = await asyncio.to_thread(load_tokenizer, ready.tokenizer_folder, limits.vocab_size)
    preparer = await asyncio.to_thread(PromptPreparer, tokenizer, limits)
    ttl_s = settings.lease_ttl_s
    scripts = Scripts(server.redis, settings.pool, timeout_s=settings.call_timeout_s)
    completion = JobCompletion(scripts, _retention(settings))
    session = Session(server.redis, ttl_s)
    page_budget = PageBudget(held_jobs, limits, ready.num_pages, settings.reserve_fraction)
    prefixes = HeldPrefixes(page_budget, is_on=settings.holds_prefixes)
    settlement = Settlement(session, scripts, completion, held_jobs, worker, metrics)
    publishers = await start_publishers(
        settings, server, session, scripts, held_jobs, tokenizer, ready, worker
    )
    starter = Starter(settlement, page_budget, preparer, limits, metrics)
    lease = Lease(session, scripts, settlement, held_jobs, worker, settings, str(server.url))
    lease.size(ready.num_pages, limits.page_size)
    lease.engine_moves = engine.moves
    parking = Parking(settlement, page_budget, held_jobs, settings.suspect_wait_s, metrics)
    starter.on_waiting = parking.park_for
    doorbell = Doorbell(blocking, session, scripts.keys, worker, settings.call_timeout_s)
    # fmt: off
    parts = Parts(
        session=session,
        held_jobs=held_jobs,
        page_budget=page_budget,
        prefixes=prefixes,
        settlement=settlement,
        publishers=publishers,
        starter=starter,
        engine_reports=EngineReports(held_jobs, page_budget, metrics),
        lease=lease,
        pull_loop=PullLoop(session, scripts, completion, doorbell, lease, starter,
                      parking, page_budget, prefixes, held_jobs, worker, settings, metrics),
        inbox=Inbox(session, scripts, completion, worker, _inbox_bounds(settings), metrics),
        reaper=Reaper(session, scripts, completion, worker, ttl_s, metrics),
        cancel_listener=CancelListener(session, blocking, scripts.keys.of("ctl", worker),
                                       held_jobs, settlement),
        status_writer=StatusWriter(session, scripts, held_jobs, page_budget, worker, limits.model,
                                   ttl_s, metrics, engine.stats),
        exporter=_exporter(settings, session, scripts, held_jobs, page_budget, metrics, engine),
    )
    # fmt: on
    _wire(parts)
    return parts


def _exporter(
    settings: WorkerSettings,
    session: Session,
    scripts: Scripts,
    held_jobs: HeldJobs,
    page_budget: PageBudget,
    metrics: Metrics,
    engine: EngineSupervisor,
) -> Exporter | None:
    """Return what serves metrics, if it is to; only then its library is imported."""
    if settings.metrics_port is None:
        return None
    from tokenbus.worker.telemetry.exporter import Exporter

    host, port = settings.metrics_host, settings.metrics_port
    return Exporter(session, scripts, held_jobs, page_budget, metrics, engine.stats, host, port)


def _retention(settings: WorkerSettings) -> Retention:
    return Retention(int(settings.log_ttl_s * 1000), int(settings.result_ttl_s * 1000))


def _inbox_bounds(settings: WorkerSettings) -> Bounds:
    """Bound raw jobs like those of a client that reads the same environment."""
    client = ClientSettings(redis_url=settings.redis_url)
    return Bounds(client.max_tenant_tokens, client.max_pool_tokens, client.refuse_late)


def _wire(parts: Parts) -> None:
    """Let the parts tell each other what happened."""
    publishers = parts.publishers
    for user in (parts.settlement, parts.starter, parts.engine_reports, parts.lease):
        user.publishers = publishers
    parts.pull_loop.open_log = parts.starter.open_log
    publishers.on_taken = parts.starter.taken
    publishers.on_preceded = parts.settlement.preceded
    publishers.on_decided = parts.engine_reports.decided
    publishers.on_choice_stopped = parts.engine_reports.choice_stopped
    publishers.on_progress = parts.engine_reports.progressed
    publishers.on_committed = parts.settlement.committed
    publishers.on_fenced = parts.settlement.fenced
    publishers.on_broken = parts.settlement.broken
    publishers.on_settled = parts.settlement.settled
    parts.settlement.stop = parts.engine_reports.stop
    parts.engine_reports.pages_changed = parts.pull_loop.pages_changed

    def gone(job: HeldJob) -> None:
        parts.prefixes.gone(job)
        parts.engine_reports.forget(job)

    parts.held_jobs.on_gone = gone
