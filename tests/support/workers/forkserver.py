"""Real worker processes that start fast: forked from one process that has imported everything."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import multiprocessing
import os
import select
import signal
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any
from unittest import mock

from patience import PATIENCE_S
from rides.scale import IS_SHORT
from workers import forked_engine

from tokenbus.worker.process import child

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from multiprocessing.context import ForkServerProcess

_PR_SET_PDEATHSIG = 1
FORKS = multiprocessing.get_context("forkserver")
IMPORTS = [
    "tokenbus.worker.supervisor",
    "tokenbus.worker.assembly",
    "tokenbus.engine.null.null_engine",
    "tokenbus.engine.null.null_tokenizer",
    "transformers.models.auto.tokenization_auto",
    "tokenbus.producer.client.blocking",
    "tokenbus.producer.commands.cli",
    "tokenbus.producer.gateway.command",
    "tokenbus.worker.control.service",
    *([] if IS_SHORT else forked_engine.IMPORTS),
]
FORKS.set_forkserver_preload(IMPORTS)


def plant() -> None:
    """Fork the forking process from that of the tests, which has imported most of it already.

    Executed at the first use, it takes five seconds of CPU time. Call it where nothing runs.
    """
    if sys.platform != "linux":
        return
    resource_tracker.ensure_running()
    with mock.patch.object(util, "spawnv_passfds", _fork_server):
        forkserver.ensure_running()


def _fork_server(_path: str, _args: list[str], handles: list[int]) -> int:
    """Do what the module would do in a new interpreter; return the process id."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            listener, alive = handles
            child.die_with_parent(parent)
            # What is missing is imported once it is asked for anything.
            select.select([listener], [], [])
            gc.freeze()
            forkserver.main(listener, alive, IMPORTS)
        finally:
            # Whatever was raised is not for the tests, whose copy this process is.
            os._exit(0)
    return pid


def _work(values: dict[str, Any], clock_error_s: float) -> None:
    """Run one worker to its end; no worker outlives the tests."""
    if clock_error_s:
        true_time = time.time
        time.time = lambda: true_time() + clock_error_s
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.supervisor import run_worker

    if sys.platform == "linux" and (values.get("engine") == "null" or not IS_SHORT):
        forked_engine.plant(int(values.get("publishers", 0)))
    end_with_tests()
    sys.exit(run_worker(WorkerSettings.load(**values)))


def end_with_tests() -> None:
    """Let this process, which was forked, outlive neither its tests nor what forked it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    Thread(target=_die_with_tests, name="tests' end", daemon=True).start()


def _die_with_tests() -> None:
    """End the worker with the process of its tests, which the forking process may outlive."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class ForkedWorker:
    """One worker process, to be killed and stopped."""

    process: ForkServerProcess

    @property
    def pid(self) -> int:
        """Return its process id."""
        if self.process.pid is None:
            raise RuntimeError("the worker was not started")
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker process alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the worker process as the kernel would: no warning, no last word."""
        self.send(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end and return the exit status, negative after a signal."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.to_thread(self.process.join, PATIENCE_S)
        if self.process.exitcode is None:
            raise TimeoutError(f"worker {self.pid} did not end")
        return self.process.exitcode

    def engine_pid(self) -> int:
        """Return the process id of its engine."""
        [child] = self._children("engine.process")
        return child

    def rank_pids(self) -> list[int]:
        """Return the process ids of all ranks of its engine, rank 0 first; none without one."""
        leaders = self._children("engine.process")
        followers = [pid for leader in leaders for pid in _children(leader, "parallel.follower")]
        return [*leaders, *sorted(followers)]

    def prober_pids(self) -> list[int]:
        """Return the process id of its engine's prober, none while there is none."""
        return _children(self.engine_pid(), "grammar.prober")

    def publisher_pids(self) -> list[int]:
        """Return the process ids of its publishers."""
        return self._children("publisher_proc")

    def _children(self, module: str) -> list[int]:
        return _children(self.pid, module)


def _children(parent: int, module: str) -> list[int]:
    """Return the children of a process that run a module; those that end meanwhile are none.

    The system lists them by the thread that started each.
    """
    found = []
    with contextlib.suppress(OSError):
        tasks = Path(f"/proc/{parent}/task").iterdir()
        for pid in " ".join((task / "children").read_text() for task in tasks).split():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                # One that was forked has the words of the tests' command, any of theirs among them.
                named = [word for word in words if word.startswith(b"tokenbus.")]
                named.append(Path(f"/proc/{pid}/comm").read_bytes())
                if any(module.encode() in name for name in named):
                    found.append(int(pid))
    return found


@asynccontextmanager
async def forked_worker(clock_error_s: float = 0, **values: Any) -> AsyncIterator[ForkedWorker]:
    """Run a worker with these settings in a process of its own; it is killed at the end.

    `clock_error_s` is how far its wall clock is ahead.
    """
    settings = {"log_level": "error"} | values
    process = FORKS.Process(target=_work, args=(settings, clock_error_s), daemon=True)
    process.start()
    try:
        yield ForkedWorker(process)
    finally:
        if process.is_alive():
            process.kill()
        await asyncio.to_thread(process.join, PATIENCE_S)


def forked_null_worker(
    pool: str, redis_url: str, **values: Any
) -> AbstractAsyncContextManager[ForkedWorker]:
    """Run a worker with made-up tokens in a process of its own."""
    return forked_worker(engine="null", pool=pool, redis_url=redis_url, **values)
