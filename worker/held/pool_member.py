"""A worker as a member of its pool: what most of its parts share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion
    from tokenbus.worker.held.held_jobs import HeldJobs
    from tokenbus.worker.held.job_traces import JobTraces
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.session import Session
    from tokenbus.worker.settings import WorkerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMember:
    """One worker's name, its way to the server, what it holds and what it counts."""

    worker: str
    settings: WorkerSettings
    session: Session
    scripts: Scripts
    completion: JobCompletion
    held_jobs: HeldJobs
    metrics: Metrics
    traces: JobTraces
