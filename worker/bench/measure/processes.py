"""CPU times by kind of process, while jobs were running."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import psutil

if TYPE_CHECKING:
    from redis.asyncio import Redis

# By a word in the command line; what else belongs to a worker is the worker process itself.
_KINDS = {"worker.engine.process": "engine", "publisher": "publisher"}


class CpuTimes(msgspec.Struct, frozen=True):
    """CPU seconds of user and system together, by kind of process."""

    server: float = 0.0
    worker: float = 0.0
    publisher: float = 0.0
    engine: float = 0.0

    def since(self, earlier: CpuTimes) -> CpuTimes:
        """Return what was used in between; what ended meanwhile counts nothing."""
        return CpuTimes(
            *(
                max(0.0, getattr(self, name) - getattr(earlier, name))
                for name in self.__struct_fields__
            )
        )


async def cpu_times(redis: Redis, worker_pids: list[int]) -> CpuTimes:
    """Read the times of the server, and of the workers with their children."""
    server = await redis.info("cpu")
    spent = {"worker": 0.0, "publisher": 0.0, "engine": 0.0}
    for pid in worker_pids:
        for process in _family(pid):
            try:
                times = process.cpu_times()
                spent[_kind(process)] += times.user + times.system
            except psutil.NoSuchProcess:
                continue
    return CpuTimes(server=float(server["used_cpu_user"]) + float(server["used_cpu_sys"]), **spent)


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kind(process: psutil.Process) -> str:
    words = " ".join(process.cmdline()[:6])
    return next((kind for word, kind in _KINDS.items() if word in words), "worker")
