"""Metrics of one gateway process, in the text format of Prometheus."""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Protocol

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.registry import Collector

from tokenbus.producer.release import release
from tokenbus.producer.telemetry import gateway_table as told
from tokenbus.producer.telemetry.histogram import Histogram
from tokenbus.producer.telemetry.scrape import Scrape
from tokenbus.producer.telemetry.tenant_labels import TenantLabels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric as Family

MEDIA_TYPE = CONTENT_TYPE_LATEST
_Times = defaultdict[tuple[str, ...], Histogram]


class JobLabels(Protocol):
    """What metrics tell of a job."""

    @property
    def pool(self) -> str:
        """Name of its pool."""
        ...

    @property
    def model(self) -> str:
        """The model as it was asked for, empty where that is not known."""
        ...

    @property
    def priority(self) -> int:
        """Its priority."""
        ...


class GatewayMetrics(Collector):
    """Counts requests, jobs and streams. No tenant is named unless `num_tenants` allows for it."""

    def __init__(self, num_tenants: int = 0) -> None:
        """Begin with nothing counted."""
        self._tenants = TenantLabels(num_tenants)
        self._num_open = 0
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._beginnings: _Times = defaultdict(Histogram)
        self._jobs: Counter[tuple[str, ...]] = Counter()
        self._resumes: Counter[tuple[str, ...]] = Counter()
        self._ends: Counter[tuple[str, ...]] = Counter()
        self._ttft: _Times = defaultdict(Histogram)
        self._itl: _Times = defaultdict(Histogram)
        self._e2e: _Times = defaultdict(Histogram)
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count a request whose answer has begun."""
        self._requests[route, str(status)] += 1
        self._beginnings[route,].add(seconds)

    def submitted(self, job: JobLabels, tenant: str) -> None:
        """Count a job that was submitted here."""
        self._jobs[*_of(job), self._tenants.of(tenant)] += 1

    def resumed(self, pool: str) -> None:
        """Count a stream of a job that was submitted before."""
        self._resumes[pool,] += 1

    def began(self, job: JobLabels, seconds: float) -> None:
        """Count a first token that was written."""
        self._ttft[_of(job)].add(seconds)

    def went_on(self, job: JobLabels, seconds: float) -> None:
        """Count a gap between two writes of tokens."""
        self._itl[_of(job)].add(seconds)

    def ended(self, job: JobLabels, outcome: str, seconds: float | None) -> None:
        """Count the end of a stream, and how long the whole took if all of it was written here."""
        self._ends[job.pool, outcome] += 1
        if seconds is not None:
            self._e2e[_of(job)].add(seconds)

    def text(self, num_open: int) -> bytes:
        """Return everything as of now."""
        self._num_open = num_open
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Family]:
        """Return everything as of now, `num_open` as it was told last."""
        scrape = Scrape(told.GATEWAY)
        scrape.one(told.BUILD_INFO, 1, "gateway", release(), platform.python_version())
        scrape.one(told.OPEN_REQUESTS, self._num_open)
        for metric, counts in (
            (told.REQUESTS, self._requests),
            (told.JOBS, self._jobs),
            (told.RESUMES, self._resumes),
            (told.ENDS, self._ends),
        ):
            scrape.many(metric, counts)
        for metric, times in (
            (told.BEGINNING, self._beginnings),
            (told.TTFT, self._ttft),
            (told.ITL, self._itl),
            (told.E2E, self._e2e),
        ):
            for labels, histogram in times.items():
                scrape.histogram(metric, histogram, *labels)
        yield from scrape.families()


def _of(job: JobLabels) -> tuple[str, str, str]:
    return job.pool, job.model, str(job.priority)
