"""Run random schedules of the job protocol against a real server: one, or thousands in parallel.

    PYTHONPATH=tests/support python -P -m storm.run --schedules 20000

Each schedule has a number, its seed: the same number is the same schedule, on any machine and
however busy it is (`--schedules 1 --first NUMBER` tells it again). What is checked is P1 to P5 of
the contract, that each charge counts once, and that no key is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import time
import uuid
from dataclasses import dataclass
from typing import Any
from unittest import mock

from storm.audit import Change, Violation, audited_scripts, check_log
from storm.weather import Weather
from storm.wire import Truth
from storm.world import World

from tokenbus.producer.errors import CursorInvalid
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.scripts.replies import JobState
from tokenbus.producer.server import connection
from tokenbus.producer.server.embedded import start_private

TOLD_LINES = 600


class StandingLoop(asyncio.SelectorEventLoop):
    """A loop on which no time passes, so that no call under way times out on a slow machine."""

    def time(self) -> float:
        """Return the same time always."""
        return 0.0


@dataclass(frozen=True, slots=True)
class Broken:
    """A schedule that broke a promise."""

    seed: int
    error: Exception
    trace: tuple[str, ...]

    def __str__(self) -> str:
        """Tell the end of the story that led to it."""
        story = "\n".join(self.trace[-TOLD_LINES:])
        return f"{story}\nschedule {self.seed}: {type(self.error).__name__}: {self.error}"


def run_schedule(path: str, seed: int, skips: frozenset[str] = frozenset()) -> Broken | None:
    """Run one schedule on a pool of its own of the server at the socket `path`."""
    world = World(path, f"storm{uuid.uuid4().hex[:12]}", seed, skips)
    try:
        return play(world)
    finally:
        world.close()


def play(world: World) -> Broken | None:
    """Run the schedule of a world with `audited_scripts`, and check what came of it."""
    try:
        with (
            mock.patch.object(connection, "FIRST_PAUSE_S", 0.0),
            asyncio.Runner(loop_factory=StandingLoop) as runner,
        ):
            runner.run(_run(world))
    except Exception as error:
        return Broken(world.seed, error, tuple(world.network.trace))
    return None


async def _run(world: World) -> None:
    await world.run()
    await check_jobs(world)
    check_readers(world)
    check_books(world)


async def check_jobs(world: World) -> None:
    """Each accepted job is done, with one end and every index once. Raises: Violation.

    Logs that have expired were looked at when they did.
    """
    truth: Any = Truth(world.network.wire)
    scripts = Scripts(truth, world.pool)
    for job in set(world.clients.accepted) - world.lost - world.audit.buried:
        record = await scripts.queue.record(job)
        if record is None or record.state is not JobState.DONE:
            raise Violation(f"{job} is not done: {record}")
        check_log(job, world.keys.log(job))


def check_readers(world: World) -> None:
    """Each reader was told the end of what the server still knew. Raises: Violation.

    One that came again with what the server has lost since is told that its cursor is none.
    """
    excused = world.lost | world.forgotten
    for reader in world.readers:
        if isinstance(reader.lost, CursorInvalid) and Weather.ROLLBACKS in world.weather:
            continue
        if reader.finish is None and reader.job_id not in excused:
            raise Violation(f"the reader of {reader.job_id} was told {reader.lost!r}")


def check_books(world: World) -> None:
    """Each charge counts once, and no key is left behind. Raises: Violation."""
    charged = world.keys.charges()
    for tenant in charged.keys() | world.audit.used.keys():
        if round(charged.get(tenant, 0.0) - world.audit.used[tenant]) != 0:
            raise Violation(f"charged {charged}, used {dict(world.audit.used)}")
    if leaked := world.keys.leaked():
        raise Violation(f"leaked {leaked}")


def first_broken(
    path: str, seeds: range, changes: tuple[Change, ...] = (), skips: frozenset[str] = frozenset()
) -> Broken | None:
    """Run schedules until one breaks a promise, with some rules switched off."""
    with audited_scripts(*changes):
        for seed in seeds:
            broken = run_schedule(path, seed, skips)
            if broken is not None:
                return broken
    return None


def _run_share(seeds: range) -> Broken | None:
    server = start_private()
    try:
        return first_broken(str(server.socket_path), seeds)
    finally:
        server.close()


def run_many(first: int, count: int, processes: int) -> Broken | None:
    """Run schedules `first` to `first + count - 1` in parallel; return the first found broken."""
    # Shares are small, so that nobody waits for the slowest; a server per share costs 0.1 s.
    shares = [
        range(start, min(start + 500, first + count)) for start in range(first, first + count, 500)
    ]
    started_at = time.monotonic()
    done = 0
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for share, broken in zip(shares, pool.imap(_run_share, shares), strict=True):
            if broken is not None:
                return broken
            done += len(share)
            rate = done / (time.monotonic() - started_at)
            print(f"{done} schedules, seeds {first} to {share.stop - 1}: {rate:.0f}/s", flush=True)
    return None


def main() -> int:
    """Run as many schedules as asked for; 1 if one of them breaks a promise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    broken = run_many(args.first, args.schedules, args.processes)
    if broken is not None:
        print(broken)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
