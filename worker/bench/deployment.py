"""The deployment of a run: a server and workers, each in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from tokenbus.producer.client.pool_status import read_status
from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.server.connection import open_server
from tokenbus.producer.server.secret_env import without_secrets
from tokenbus.worker.errors import EngineDied, EngineStartFailed
from tokenbus.worker.replicas.placement import replica_commands
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from types import TracebackType

    from redis.asyncio import Redis

    from tokenbus.producer.server.connection import Server
    from tokenbus.worker.bench.options import BenchOptions

_LOOK_S = 0.05
_STOP_TIMEOUT_S = 10.0
_NUM_TAIL_LINES = 15


class Deployment:
    """Server and workers of a run; as a context manager it starts and ends them.

    The server is the one of `--redis`, else an embedded one. Workers are `tokenbus worker`
    processes on it, each with a GPU of its own where there are several of them and GPUs at all.
    """

    def __init__(self, options: BenchOptions, *, start_timeout_s: float = 1800.0) -> None:
        self._options = options
        self._start_timeout_s = start_timeout_s
        self.keys = Keys(options.pool or f"bench-{uuid.uuid4().hex[:8]}")
        self._folder = tempfile.TemporaryDirectory(prefix="tb-bench-")
        self._server: Server | None = None
        self._workers: list[asyncio.subprocess.Process] = []
        self._logs: list[IO[bytes]] = []

    @property
    def redis(self) -> Redis:
        """The parent's own connection."""
        return self._opened.redis

    @property
    def url(self) -> str:
        """Where other processes reach the server."""
        return self._opened.effective_url

    @property
    def _opened(self) -> Server:
        assert self._server is not None, "the stage has not been entered"
        return self._server

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._workers]

    @property
    def step_logs(self) -> Path:
        """Folder in which engines note what they handed over."""
        return Path(self._folder.name) / "steps"

    async def __aenter__(self) -> Self:
        """Start everything; return once every worker pulls.

        Raises: EngineStartFailed with the worker's last lines; what opening the server raises.
        """
        try:
            self.step_logs.mkdir()
            self._server = await open_server(self._options.redis)
            for number in range(self._options.workers):
                await self._start_worker(number)
            await self._wait_started()
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End workers and server."""
        await self._end()

    def check_workers(self) -> None:
        """Raise EngineDied if a worker has ended."""
        for number, worker in enumerate(self._workers):
            if worker.returncode is not None:
                message = f"worker {number} ended with {worker.returncode}"
                raise EngineDied(message + self._tail(number))

    async def _start_worker(self, number: int) -> None:
        log = (Path(self._folder.name) / f"worker-{number}.log").open("w+b")
        self._logs.append(log)
        module = "tokenbus.worker.bench.worker_process"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            module,
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=without_secrets(os.environ) | self._worker_environment(number),
            start_new_session=True,
        )
        self._workers.append(process)
        assert process.stdin is not None
        process.stdin.write(f"{self.url}\n".encode())
        process.stdin.close()

    def _worker_environment(self, number: int) -> dict[str, str]:
        """Return settings of a worker, and which GPUs it has where there are several."""
        options = self._options
        values: dict[str, object] = {
            "pool": self.keys.pool,
            "engine": options.engine,
            "log_level": "warning",
            "log_format": "console",
        }
        if options.lag:
            values["step_log"] = str(self.step_logs)
        values |= options.worker
        settings = WorkerSettings.load(**values, replicas=options.workers)
        place = list(replica_commands(settings, ()).values())[number].environment
        given = {f"TOKENBUS_{name.upper()}": str(value) for name, value in values.items()}
        return {**given, **place}

    async def _wait_started(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while len((await read_status(self.redis, self.keys)).workers) < len(self._workers):
            for number, worker in enumerate(self._workers):
                if worker.returncode is not None:
                    raise EngineStartFailed("worker", f"a worker did not start{self._tail(number)}")
            if time.monotonic() > deadline:
                message = f"the workers did not start within {self._start_timeout_s:g} s"
                raise EngineStartFailed("worker", message + self._tail(0))
            await asyncio.sleep(_LOOK_S)

    def _tail(self, number: int) -> str:
        """Return the last lines that a worker wrote."""
        log = self._logs[number]
        log.seek(0)
        lines = log.read().decode(errors="replace").splitlines()
        return ":\n" + "\n".join(lines[-_NUM_TAIL_LINES:]) if lines else ""

    async def _end(self) -> None:
        for worker in self._workers:
            if worker.returncode is None:
                # Twice: the second signal sets the drain deadline to now.
                for _ in range(2):
                    with contextlib.suppress(ProcessLookupError):
                        worker.terminate()
        for worker in self._workers:
            try:
                async with asyncio.timeout(_STOP_TIMEOUT_S):
                    await worker.wait()
            except TimeoutError:
                worker.kill()
                await worker.wait()
        for log in self._logs:
            log.close()
        if self._server is not None:
            await self._server.close()
        self._folder.cleanup()
