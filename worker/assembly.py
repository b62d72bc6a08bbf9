"""Puts the parts of a worker together once server and engine are there."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.producer.chains import Chains, Retention
from tokenbus.producer.scripts import Bounds, Scripts
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.beacon import Beacon
from tokenbus.worker.clearance import Clearance
from tokenbus.worker.custody import Custody
from tokenbus.worker.doorbell import Doorbell
from tokenbus.worker.held_prefixes import HeldPrefixes
from tokenbus.worker.inbox import Inbox
from tokenbus.worker.intake import Intake
from tokenbus.worker.keeper import Keeper
from tokenbus.worker.lease import Lease
from tokenbus.worker.ledger import Ledger
from tokenbus.worker.notices import Notices
from tokenbus.worker.outputs import Outputs
from tokenbus.worker.prompt import PromptPreparer
from tokenbus.worker.publishing.build import start_publishers
from tokenbus.worker.session import Session
from tokenbus.worker.starter import Starter
from tokenbus.worker.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.connection import Server
    from tokenbus.worker.engine_keeper import EngineKeeper
    from tokenbus.worker.engine_link import EngineLink
    from tokenbus.worker.exporter import Exporter
    from tokenbus.worker.handoff import EngineReady, Report
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.publishing.publishers import Publishers
    from tokenbus.worker.roster import Roster
    from tokenbus.worker.settings import WorkerSettings


@dataclass(slots=True)
class Parts:
    """The parts of a running worker, wired to each other."""

    session: Session
    roster: Roster
    ledger: Ledger
    prefixes: HeldPrefixes
    custody: Custody
    publishers: Publishers
    starter: Starter
    outputs: Outputs
    lease: Lease
    intake: Intake
    inbox: Inbox
    keeper: Keeper
    notices: Notices
    beacon: Beacon
    exporter: Exporter | None

    def use_engine(self, link: EngineLink) -> None:
        """Let a new engine take the place of the one before."""
        self.starter.engine = link
        self.outputs.engine = link
        self.ledger.available_pages = link.ready.num_pages
        self.prefixes.clear()
        self.intake.pages_changed()

    def take_report(self, report: Report) -> None:
        """Handle one report of the engine."""
        self.outputs.take(report)


async def assemble(
    settings: WorkerSettings,
    server: Server,
    blocking: Redis,
    engine: EngineKeeper,
    ready: EngineReady,
    roster: Roster,
    worker: str,
    metrics: Metrics,
) -> Parts:
    """Build the parts; `blocking` is a client for calls that wait on the server."""
    limits = ready.limits
    tokenizer = await asyncio.to_thread(load_tokenizer, ready.tokenizer_folder, limits.vocab_size)
    preparer = await asyncio.to_thread(PromptPreparer, tokenizer, limits)
    ttl_s = settings.lease_ttl_s
    scripts = Scripts(server.redis, settings.pool, timeout_s=settings.call_timeout_s)
    chains = Chains(scripts, _retention(settings))
    session = Session(server.redis, ttl_s)
    ledger = Ledger(roster, limits, ready.num_pages, settings.reserve_fraction)
    prefixes = HeldPrefixes(ledger, is_on=settings.holds_prefixes)
    custody = Custody(session, scripts, chains, roster, worker, metrics)
    publishers = await start_publishers(
        settings, server, session, scripts, roster, tokenizer, ready, worker
    )
    starter = Starter(custody, ledger, preparer, limits, metrics)
    lease = Lease(session, scripts, custody, roster, worker, settings, str(server.url))
    lease.size(ready.num_pages, limits.page_size)
    lease.engine_moves = engine.moves
    clearance = Clearance(custody, ledger, roster, settings.suspect_wait_s, metrics)
    starter.on_waiting = clearance.park_for
    doorbell = Doorbell(blocking, session, scripts.keys, worker, settings.call_timeout_s)
    # fmt: off
    parts = Parts(
        session=session,
        roster=roster,
        ledger=ledger,
        prefixes=prefixes,
        custody=custody,
        publishers=publishers,
        starter=starter,
        outputs=Outputs(roster, ledger, metrics),
        lease=lease,
        intake=Intake(session, scripts, chains, doorbell, lease, starter,
                      clearance, ledger, prefixes, roster, worker, settings, metrics),
        inbox=Inbox(session, scripts, chains, worker, _inbox_bounds(settings), metrics),
        keeper=Keeper(session, scripts, chains, worker, ttl_s, metrics),
        notices=Notices(session, blocking, scripts.keys.of("ctl", worker), roster, custody),
        beacon=Beacon(session, scripts, roster, ledger, worker, limits.model, ttl_s, metrics,
                      engine.stats),
        exporter=_exporter(settings, session, scripts, roster, ledger, metrics, engine),
    )
    # fmt: on
    _wire(parts)
    return parts


def _exporter(
    settings: WorkerSettings,
    session: Session,
    scripts: Scripts,
    roster: Roster,
    ledger: Ledger,
    metrics: Metrics,
    engine: EngineKeeper,
) -> Exporter | None:
    """Return what serves metrics, if it is to; only then its library is imported."""
    if settings.metrics_port is None:
        return None
    from tokenbus.worker.exporter import Exporter

    host, port = settings.metrics_host, settings.metrics_port
    return Exporter(session, scripts, roster, ledger, metrics, engine.stats, host, port)


def _retention(settings: WorkerSettings) -> Retention:
    return Retention(int(settings.log_ttl_s * 1000), int(settings.result_ttl_s * 1000))


def _inbox_bounds(settings: WorkerSettings) -> Bounds:
    """Bound raw jobs like those of a client that reads the same environment."""
    client = ClientSettings(redis_url=settings.redis_url)
    return Bounds(client.max_tenant_tokens, client.max_pool_tokens, client.refuse_late)


def _wire(parts: Parts) -> None:
    """Let the parts tell each other what happened."""
    publishers = parts.publishers
    for user in (parts.custody, parts.starter, parts.outputs, parts.lease):
        user.publishers = publishers
    parts.intake.open_log = parts.starter.open_log
    publishers.on_taken = parts.starter.taken
    publishers.on_preceded = parts.custody.preceded
    publishers.on_decided = parts.outputs.decided
    publishers.on_choice_stopped = parts.outputs.choice_stopped
    publishers.on_progress = parts.outputs.progressed
    publishers.on_committed = parts.custody.committed
    publishers.on_fenced = parts.custody.fenced
    publishers.on_broken = parts.custody.broken
    publishers.on_settled = parts.custody.settled
    parts.custody.stop = parts.outputs.stop
    parts.outputs.pages_changed = parts.intake.pages_changed

    def gone(job: HeldJob) -> None:
        parts.prefixes.gone(job)
        parts.outputs.forget(job)

    parts.roster.on_gone = gone
