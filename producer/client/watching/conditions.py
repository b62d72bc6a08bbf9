"""What of a pool needs a look: conditions with a sentence each, the worst first."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.producer.client.watching.pool_watch import PoolSight

# Who waits so long for a worker notices; a pool that scales with its backlog is at work by then.
BACKLOG_S = 30.0
# Where the server refuses to store anything is near.
MEMORY_SHARE = 0.9
# Of the jobs of the last minute.
FAILED_SHARE, MIN_FAILED = 0.05, 2


class Level(StrEnum):
    """How much a condition matters: jobs stand still, they may come to, or neither."""

    BAD = "bad"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition; `code` is a stable word, `told` a sentence, `cure` what to do about it."""

    level: Level
    code: str
    told: str
    cure: str


def conditions_of(sight: PoolSight) -> list[Condition]:
    """Return the conditions of a pool, the worst first."""
    order = list(Level)
    found = [*_of_workers(sight), *_of_queue(sight), *_of_jobs(sight), *_of_server(sight)]
    return sorted(found, key=lambda condition: order.index(condition.level))


def _of_workers(sight: PoolSight) -> Iterator[Condition]:
    status = sight.figures.status
    for name in sorted({*sight.lost, *sight.left}):
        num_left = sight.left.get(name, 0)
        since = sight.lost.get(name, sight.figures.at_ms)
        ago_s = max(0, sight.figures.at_ms - since) / 1000
        told = f"and still holds {_jobs(num_left)}" if num_left else "and its jobs went back"
        yield Condition(
            Level.BAD if num_left else Level.WARNING,
            "worker_lost",
            f"Worker {name} was lost {ago_s:.0f} s ago, {told}.",
            "Others go on with its jobs; look why its process ended.",
        )
    for worker in status.details:
        if worker.outage is not None:
            yield Condition(
                Level.BAD,
                "engine_down",
                f"Worker {worker.name} has {worker.outage}.",
                "It starts another engine by itself; its log has the line engine.died.",
            )
    if not status.ready:
        starting = len(status.starting)
        told = f"{starting} loading its model" if starting == 1 else f"{starting} loading theirs"
        yield Condition(
            Level.NOTE if starting and not status.workers else Level.BAD,
            "no_worker",
            f"No worker can run jobs ({told})." if starting else "No worker can run jobs.",
            "Start one: tokenbus worker. Jobs wait meanwhile and are not lost.",
        )
    for name in sight.drained_ms:
        held = next((each.held_jobs for each in status.details if each.name == name), 0)
        told = f"and still runs {_jobs(held)}" if held else "and holds none: it may be stopped"
        yield Condition(
            Level.NOTE,
            "drained",
            f"Worker {name} takes no more jobs {told}.",
            "Let it take jobs again.",
        )


def _of_queue(sight: PoolSight) -> Iterator[Condition]:
    figures, status = sight.figures, sight.figures.status
    paused_for_s = status.paused_for_s
    if paused_for_s is not None:
        yield Condition(
            Level.WARNING,
            "paused",
            f"The pool has been paused for {paused_for_s:.0f} s: nobody takes jobs.",
            "Resume it here, or by tokenbus resume.",
        )
    if figures.seconds_of_backlog >= BACKLOG_S and status.waiting_jobs:
        yield Condition(
            Level.WARNING,
            "backlog",
            f"{_jobs(status.waiting_jobs)} wait: {figures.seconds_of_backlog:.0f} s of work.",
            "Add workers, or look at which tenant sends them.",
        )
    if sight.num_suspects:
        yield Condition(
            Level.WARNING,
            "suspects",
            f"{_jobs(sight.num_suspects)} wait to run with few others: engines died with them.",
            "The search finds the one to blame by itself; it ends as poison, a dead letter.",
        )


def _of_jobs(sight: PoolSight) -> Iterator[Condition]:
    num_failed = sight.ended.reasons.get("failed", 0)
    if num_failed >= MIN_FAILED and num_failed >= FAILED_SHARE * sight.ended.num_jobs:
        yield Condition(
            Level.WARNING,
            "failures",
            f"{_jobs(num_failed)} of {sight.ended.num_jobs} failed in the last minute.",
            "Dead letters tell the reason of each.",
        )


def _of_server(sight: PoolSight) -> Iterator[Condition]:
    memory = sight.memory
    if memory.share >= MEMORY_SHARE:
        yield Condition(
            Level.BAD,
            "server_full",
            f"The server uses {memory.share:.0%} of its memory; at 100 % it refuses new jobs.",
            "Raise maxmemory, or lower TOKENBUS_RESULT_BYTES.",
        )


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number:,} jobs"
