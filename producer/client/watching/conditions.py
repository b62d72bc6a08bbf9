"""Conditions of a pool that need a look: a sentence each, the worst first.

docs/incidents.md has a section for each, by its code.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenbus.producer.client.watching.pool_watch import PoolSight

# Who waits so long for a worker notices; a pool that scales with its backlog is at work by then.
BACKLOG_S = 30.0
# Where the server refuses to store anything is near.
MEMORY_SHARE = 0.9
# Half of what a server lets wait for a minute, by its own default, before it cuts a reader off.
UNREAD_BYTES = 4 * 2**20
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
    yield from _of_lost_workers(sight)
    yield from _of_checkpoints(sight)
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


def _of_lost_workers(sight: PoolSight) -> Iterator[Condition]:
    """Tell of each worker that vanished; it matters less once another has its place."""
    at_ms = sight.figures.at_ms
    since = {name: sight.lost.get(name, at_ms) for name in {*sight.lost, *sight.left}}
    started = sorted(
        at_ms - 1000 * worker.uptime_s
        for worker in sight.figures.status.details
        if worker.uptime_s is not None and worker.outage is None
    )
    for name in sorted(since, key=lambda name: (since[name], name)):
        num_left = sight.left.get(name, 0)
        new = next((at for at in started if at > since[name]), None)
        if new is not None:
            started.remove(new)
        if num_left:
            level, told = Level.BAD, f"and still holds {_jobs(num_left)}"
        elif new is None:
            level, told = Level.WARNING, "and its jobs went back"
        else:
            level, told = Level.NOTE, "its jobs went back, and a new worker has its place"
        yield Condition(
            level,
            "worker_lost",
            f"Worker {name} was lost {max(0, at_ms - since[name]) / 1000:.0f} s ago, {told}.",
            "Others go on with its jobs; look why its process ended, and start another.",
        )


def _of_checkpoints(sight: PoolSight) -> Iterator[Condition]:
    """Tell of workers that serve other weights than most do; a start has told of none yet."""
    workers = [each for each in sight.figures.status.details if each.model]
    # One that tells no digest serves what another has under the same name.
    known = {each.model: each.checkpoint for each in workers if each.checkpoint}
    serving = defaultdict[str, list[str]](list)
    for each in workers:
        serving[each.checkpoint or known.get(each.model) or str(each.model)].append(each.name)
    most = max(serving, key=lambda weights: len(serving[weights]), default="")
    for weights, names in serving.items():
        if weights != most:
            yield Condition(
                Level.BAD,
                "wrong_checkpoint",
                f"{_several(names)} another checkpoint ({weights}) than the other workers of the"
                f" pool ({most}).",
                "Stop what should not serve it; what it has written stays.",
            )


def _several(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"Worker {names[0]} serves"
    return f"Workers {', '.join(names[:3])}{' and more' if len(names) > 3 else ''} serve"


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
    if memory.unread_bytes >= UNREAD_BYTES:
        yield Condition(
            Level.WARNING,
            "slow_client",
            f"A client reads too slowly: {memory.unread_bytes / 2**20:.0f} MiB wait for it at the"
            " server, which cuts it off where they become more.",
            "It goes on from its cursor then; let it read faster, or take whole results.",
        )


def _jobs(number: int) -> str:
    return "1 job" if number == 1 else f"{number:,} jobs"
