"""Assembly of a worker: its parts, put together once server and engine are there.

Each part is whole when it is made: it is given what it uses. So the order here is the order of use:
what talks to the engine first, what talks to the queue last. News travels the other way as events:
`JobFlow` is told what publishers answer and which job has left, `EngineReports` what the engine
reports.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.producer.scripts import Bounds, Scripts
from tokenbus.producer.scripts.completing import Retention
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.held.pool_member import PoolMember
from tokenbus.worker.held.served_model import ServedModel
from tokenbus.worker.jobs.engine_reports import EngineReports
from tokenbus.worker.jobs.flow import JobFlow
from tokenbus.worker.jobs.head_of_line import HeadOfLine
from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
from tokenbus.worker.jobs.log_opening import LogOpener
from tokenbus.worker.jobs.page_budget import PageBudget
from tokenbus.worker.jobs.prompt import PromptPreparer
from tokenbus.worker.jobs.settlement import Settlement
from tokenbus.worker.jobs.start import Starter
from tokenbus.worker.jobs.suspects import Suspects
from tokenbus.worker.logs import get_logger
from tokenbus.worker.pool.arrivals import Arrivals
from tokenbus.worker.pool.cancel_listener import CancelListener
from tokenbus.worker.pool.corpus import Corpus
from tokenbus.worker.pool.doorbell import Doorbell
from tokenbus.worker.pool.inbox import Inbox
from tokenbus.worker.pool.lease import Lease
from tokenbus.worker.pool.parking import Parking
from tokenbus.worker.pool.pull_loop import PullLoop
from tokenbus.worker.pool.questions import Questions
from tokenbus.worker.pool.reaper import Reaper
from tokenbus.worker.pool.refusals import Refusals
from tokenbus.worker.pool.status_writer import StatusWriter
from tokenbus.worker.publishing.build import start_publishers
from tokenbus.worker.session import Session
from tokenbus.worker.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.types import EngineLimits
    from tokenbus.producer.server.connection import Server
    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.held_jobs import HeldJobs
    from tokenbus.worker.held.job_traces import JobTraces
    from tokenbus.worker.life import WorkerLife
    from tokenbus.worker.messages.engine import EngineReady
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.publishing.publisher_pool import PublisherPool
    from tokenbus.worker.settings import WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts that a worker starts and stops."""

    member: PoolMember
    settlement: Settlement
    publishers: PublisherPool
    engine_reports: EngineReports
    lease: Lease
    pull_loop: PullLoop
    inbox: Inbox
    questions: Questions
    reaper: Reaper
    cancel_listener: CancelListener
    corpus: Corpus
    status_writer: StatusWriter


def join_pool(
    settings: WorkerSettings,
    server: Server,
    *,
    worker: str,
    held_jobs: HeldJobs,
    metrics: Metrics,
    traces: JobTraces,
) -> PoolMember:
    """Make what the parts share; the session is not open yet."""
    scripts = Scripts(
        server.redis,
        settings.pool,
        timeout_s=settings.call_timeout_s,
        execute=server.direct.execute,
    )
    return PoolMember(
        worker=worker,
        settings=settings,
        session=Session(server.redis, settings.lease_ttl_s, server.direct),
        scripts=scripts,
        completion=JobCompletion(scripts, _retention(settings)),
        held_jobs=held_jobs,
        metrics=metrics,
        traces=traces,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _JobParts:
    """What decides on held jobs, before there is a publisher to tell."""

    page_budget: PageBudget
    prefixes: HeldPrefixes
    settlement: Settlement
    parking: Parking
    starter: Starter
    head_of_line: HeadOfLine
    suspects: Suspects


async def assemble(
    member: PoolMember,
    *,
    server: Server,
    blocking: Redis,
    engine: CurrentEngine,
    life: WorkerLife,
    ready: EngineReady,
) -> Parts:
    """Build the parts; `blocking` is a client for calls that wait on the server."""
    limits = ready.limits
    tokenizer = await asyncio.to_thread(load_tokenizer, ready.tokenizer_folder, limits.vocab_size)
    preparer = await asyncio.to_thread(_prompt_preparer, tokenizer, limits, member.settings)
    jobs = _job_parts(member, engine, ready, preparer)
    flow = JobFlow(
        held_jobs=member.held_jobs,
        engine=engine,
        costs=jobs.page_budget.costs,
        prefixes=jobs.prefixes,
        settlement=jobs.settlement,
        starter=jobs.starter,
        head_of_line=jobs.head_of_line,
        metrics=member.metrics,
    )
    publishers = await start_publishers(member, server, flow, tokenizer=tokenizer, ready=ready)
    lease = Lease(
        member,
        settlement=jobs.settlement,
        publishers=publishers,
        engine=engine,
        total_pages=ready.num_pages,
        page_size=limits.page_size,
        url=server.url,
    )
    log_opener = LogOpener(jobs.starter, publishers, limits)
    return Parts(
        member=member,
        settlement=jobs.settlement,
        publishers=publishers,
        engine_reports=_engine_reports(member, engine, jobs, publishers),
        lease=lease,
        pull_loop=_pull_loop(member, engine, jobs, log_opener, lease, Doorbell(member, blocking)),
        inbox=Inbox(member, _inbox_bounds(member.settings)),
        questions=Questions(member, preparer, tokenizer, limits.max_model_len),
        reaper=Reaper(member),
        cancel_listener=CancelListener(member, blocking, jobs.settlement),
        corpus=Corpus(member, engine),
        status_writer=_status_writer(member, engine, life, jobs, limits),
    )


def _status_writer(
    member: PoolMember,
    engine: CurrentEngine,
    life: WorkerLife,
    jobs: _JobParts,
    limits: EngineLimits,
) -> StatusWriter:
    """Build what tells the pool how this worker is and whose model it has."""
    return StatusWriter(
        member, costs=jobs.page_budget.costs, engine=engine, life=life, limits=limits
    )


def _prompt_preparer(
    tokenizer: PreTrainedTokenizerFast, limits: EngineLimits, settings: WorkerSettings
) -> PromptPreparer:
    """Make what renders prompts, and log how the model is taken to write calls and reasoning."""
    preparer = PromptPreparer(tokenizer, limits, settings.cache_groups, settings.chat_settings())
    if preparer.chat is not None:
        get_logger().info("chat.format_chosen", **preparer.chat.told())
    return preparer


def _job_parts(
    member: PoolMember, engine: CurrentEngine, ready: EngineReady, preparer: PromptPreparer
) -> _JobParts:
    settings = member.settings
    page_budget = PageBudget(
        member.held_jobs,
        ready.limits,
        total_pages=ready.num_pages,
        reserve_fraction=settings.reserve_fraction,
    )
    settlement = Settlement(member, engine)
    parking = Parking(member, settlement, page_budget)
    starter = Starter(
        settlement=settlement,
        parking=parking,
        page_budget=page_budget,
        preparer=preparer,
        engine=engine,
        metrics=member.metrics,
        served=ServedModel(settings.model_names),
    )
    head_of_line = HeadOfLine(member.held_jobs, starter, parking)
    return _JobParts(
        page_budget=page_budget,
        prefixes=HeldPrefixes(page_budget, is_on=settings.holds_prefixes),
        settlement=settlement,
        parking=parking,
        starter=starter,
        head_of_line=head_of_line,
        suspects=Suspects(
            member.held_jobs,
            settlement=settlement,
            head_of_line=head_of_line,
            metrics=member.metrics,
        ),
    )


def _engine_reports(
    member: PoolMember, engine: CurrentEngine, jobs: _JobParts, publishers: PublisherPool
) -> EngineReports:
    return EngineReports(
        held_jobs=member.held_jobs,
        engine=engine,
        page_budget=jobs.page_budget,
        prefixes=jobs.prefixes,
        settlement=jobs.settlement,
        head_of_line=jobs.head_of_line,
        suspects=jobs.suspects,
        publishers=publishers,
        metrics=member.metrics,
    )


def _pull_loop(
    member: PoolMember,
    engine: CurrentEngine,
    jobs: _JobParts,
    log_opener: LogOpener,
    lease: Lease,
    doorbell: Doorbell,
) -> PullLoop:
    refusals = Refusals(member)
    arrivals = Arrivals(
        member,
        starter=jobs.starter,
        log_opener=log_opener,
        head_of_line=jobs.head_of_line,
        page_budget=jobs.page_budget,
        prefixes=jobs.prefixes,
        suspects=jobs.suspects,
        refusals=refusals,
    )
    return PullLoop(
        member,
        engine=engine,
        doorbell=doorbell,
        lease=lease,
        arrivals=arrivals,
        refusals=refusals,
        parking=jobs.parking,
        head_of_line=jobs.head_of_line,
        page_budget=jobs.page_budget,
        prefixes=jobs.prefixes,
        suspects=jobs.suspects,
    )


def _retention(settings: WorkerSettings) -> Retention:
    return Retention(
        int(settings.log_ttl_s * 1000),
        int(settings.result_ttl_s * 1000),
        settings.result_bytes,
        settings.tenant_result_bytes,
    )


def _inbox_bounds(settings: WorkerSettings) -> Bounds:
    """Bound raw jobs like those of a client that reads the same environment."""
    client = ClientSettings(redis_url=settings.redis_url)
    return Bounds(client.max_tenant_tokens, client.max_pool_tokens, client.refuse_late)
