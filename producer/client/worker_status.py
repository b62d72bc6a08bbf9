"""A worker as it tells of itself, once a second, in its status key."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class WorkerPhase(StrEnum):
    """What a worker is at.

    `starting` is before its first pull: it loads a model, and its jobs are none. `down` is between
    two engines, `draining` after it was told to stop.
    """

    STARTING = "starting"
    READY = "ready"
    DOWN = "down"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class PageFigures:
    """KV pages, each in one of four places, so that these add up to `total`.

    `shared` are held by several sequences, `held` by one, `cached` by none and kept for prompts
    that begin alike, `free` hold nothing.
    """

    free: int
    cached: int
    shared: int
    held: int

    @property
    def total(self) -> int:
        """Return all pages that sequences can hold."""
        return self.free + self.cached + self.shared + self.held

    def __add__(self, other: PageFigures) -> PageFigures:
        """Return the pages of two workers together."""
        return PageFigures(
            self.free + other.free,
            self.cached + other.cached,
            self.shared + other.shared,
            self.held + other.held,
        )


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    """Quantiles of durations over the last ten seconds or so, in ms; `count` of them."""

    p50_ms: float
    p99_ms: float
    count: int


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A living worker as it said itself, a second ago or less; None for what it did not tell.

    `phase_told` says what a start is at, or why there is no engine, `percent` how far a start is, 0
    where that is not known. `running` and `waiting` count sequences in the engine, `used_pages` KV
    pages that they hold. Rates are of the last second: `tokens_per_s` generated,
    `prompt_tokens_per_s` taken in, those found in the cache among them. `outage` says why it has no
    engine now; it starts another by itself. `names` are those under which requests may ask for its
    model, `max_model_len` how many tokens a text of it may have, prompt and output. `latencies` are
    by name: `queue`, `ttft`, `itl`, `e2e`, `step`, `publish`. `checkpoint` is a digest of its
    weights, empty where it has none.
    """

    name: str
    model: str | None = None
    page_size: int | None = None
    total_pages: int | None = None
    used_pages: int | None = None
    running: int | None = None
    held_jobs: int = 0
    tokens_per_s: float | None = None
    outage: str | None = None
    names: tuple[str, ...] = ()
    max_model_len: int | None = None
    phase: WorkerPhase = WorkerPhase.READY
    phase_told: str = ""
    percent: int = 0
    version: str | None = None
    uptime_s: float | None = None
    waiting: int | None = None
    pages: PageFigures | None = None
    prompt_tokens_per_s: float | None = None
    latencies: Mapping[str, LatencyFigures] = field(default_factory=dict)
    checkpoint: str = ""


def worker_status(name: str, held_jobs: int, gauges: bytes | None) -> WorkerStatus:
    """Read what a worker tells of itself; one that has told nothing yet is alive all the same."""
    told: dict[str, Any] = json.loads(gauges) if gauges else {}
    pages = _pages(told)
    engine: dict[str, Any] = told.get("engine") or {}
    outage = None if told.get("phase") == WorkerPhase.STARTING else _outage(told)
    return WorkerStatus(
        name=name,
        model=told.get("model"),
        page_size=told.get("page_size"),
        total_pages=told.get("total_pages"),
        used_pages=None if pages is None else pages.held + pages.shared,
        running=engine.get("num_running"),
        held_jobs=held_jobs,
        tokens_per_s=told.get("tokens_per_s"),
        outage=outage,
        names=tuple(told.get("names") or ()),
        max_model_len=told.get("max_model_len"),
        phase=_phase(told, outage),
        phase_told=outage or str(told.get("phase_told", "")),
        percent=int(told.get("percent", 0)),
        version=told.get("version"),
        uptime_s=told.get("uptime_s"),
        waiting=engine.get("num_waiting"),
        pages=pages,
        prompt_tokens_per_s=told.get("prompt_tokens_per_s"),
        latencies={
            each: LatencyFigures(*figures) for each, figures in told.get("latencies", {}).items()
        },
        checkpoint=str(told.get("checkpoint") or ""),
    )


def _phase(told: Mapping[str, Any], outage: str | None) -> WorkerPhase:
    """Return the phase; earlier releases tell of an outage alone, later ones may tell of others."""
    try:
        return WorkerPhase(told.get("phase", ""))
    except ValueError:
        return WorkerPhase.READY if outage is None else WorkerPhase.DOWN


def _pages(told: Mapping[str, Any]) -> PageFigures | None:
    engine: dict[str, Any] = told.get("engine") or {}
    total = told.get("total_pages")
    if not engine or total is None:
        return None
    free, cached = engine["free_pages"], engine["evictable_pages"]
    shared = engine.get("shared_pages", 0)
    return PageFigures(free, cached, shared, total - free - cached - shared)


def _outage(told: Mapping[str, Any]) -> str | None:
    """Say why a worker cannot run jobs now; None if it can, or does not tell."""
    if told.get("ready", True):
        return None
    outage = told.get("outage") or {}
    return (
        f"no engine: {outage.get('reason', 'it has ended')} ({outage.get('cause', 'exit')},"
        f" {outage.get('num_in_a_row', 0)} in a row)"
    )
