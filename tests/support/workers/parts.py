"""Parts of a worker for tests: whole, around what a test looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

from tokenbus.engine.types import EngineLimits
from tokenbus.worker.engine.current_engine import CurrentEngine
from tokenbus.worker.held.held_jobs import HeldJobs
from tokenbus.worker.held.job_traces import JobTraces
from tokenbus.worker.held.pool_member import PoolMember
from tokenbus.worker.jobs.engine_reports import EngineReports
from tokenbus.worker.jobs.flow import JobFlow
from tokenbus.worker.jobs.head_of_line import HeadOfLine
from tokenbus.worker.jobs.held_prefixes import HeldPrefixes
from tokenbus.worker.jobs.page_budget import PageBudget
from tokenbus.worker.jobs.settlement import Settlement
from tokenbus.worker.jobs.suspects import Suspects
from tokenbus.worker.metrics import Metrics
from tokenbus.worker.pool.parking import Parking
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from tokenbus.worker.messages.engine import Command

PAGE_SIZE = 16


def a_member(**given: Any) -> PoolMember:
    """Make a pool member; what is not given is empty, or a mock where it talks to the server."""
    chosen: dict[str, Any] = {"worker": "w", "settings": WorkerSettings.load()}
    chosen |= {"session": Mock(), "scripts": Mock(), "completion": Mock()}
    chosen |= {"held_jobs": HeldJobs(), "metrics": Metrics(), "traces": JobTraces(Mock())}
    return PoolMember(**(chosen | given))


def an_engine() -> tuple[CurrentEngine, list[Command]]:
    """Make an engine that is up and does nothing; return it and the list of its commands."""
    sent: list[Command] = []
    link: Any = Mock(is_alive=True, send=sent.append)
    link.stalled_s.return_value = 0.0
    link.ready.follower_pids = ()
    engine = CurrentEngine(stall_s=60.0)
    engine.replace(link)
    return engine, sent


@dataclass(frozen=True, slots=True)
class JobParts:
    """What decides on the jobs of a worker with `num_pages` free pages, around a starter."""

    member: PoolMember
    engine: CurrentEngine
    sent: list[Command]
    page_budget: PageBudget
    prefixes: HeldPrefixes
    settlement: Settlement
    parking: Parking
    head_of_line: HeadOfLine
    suspects: Suspects
    flow: JobFlow

    def engine_reports(self, publishers: Any) -> EngineReports:
        """Make what takes the engine's reports and passes them to these publishers."""
        return EngineReports(
            held_jobs=self.member.held_jobs,
            engine=self.engine,
            page_budget=self.page_budget,
            prefixes=self.prefixes,
            settlement=self.settlement,
            head_of_line=self.head_of_line,
            suspects=self.suspects,
            publishers=publishers,
            metrics=self.member.metrics,
        )


def job_parts(member: PoolMember, page_budget: PageBudget, starter: Any) -> JobParts:
    """Make the parts that decide on held jobs; prefixes are not followed."""
    engine, sent = an_engine()
    prefixes = HeldPrefixes(page_budget, is_on=False)
    settlement = Settlement(member, engine)
    parking = Parking(member, settlement, page_budget)
    head_of_line = HeadOfLine(member.held_jobs, starter, parking)
    suspects = Suspects(
        member.held_jobs, settlement=settlement, head_of_line=head_of_line, metrics=member.metrics
    )
    flow = JobFlow(
        held_jobs=member.held_jobs,
        engine=engine,
        costs=page_budget.costs,
        prefixes=prefixes,
        settlement=settlement,
        starter=starter,
        head_of_line=head_of_line,
        metrics=member.metrics,
    )
    return JobParts(
        member,
        engine,
        sent,
        page_budget,
        prefixes,
        settlement,
        parking,
        head_of_line,
        suspects,
        flow,
    )


def page_budget_of(
    held_jobs: HeldJobs, num_pages: int, num_rows: int = 8, reserve_fraction: float = 0.0
) -> PageBudget:
    """Make the accounts of an idle engine of so many pages."""
    limits = EngineLimits("m", num_pages, PAGE_SIZE, 4096, num_rows, (), 512)
    return PageBudget(held_jobs, limits, total_pages=num_pages, reserve_fraction=reserve_fraction)
