"""A deployment whose parts may be killed: a server, a worker, gateways and a control service."""

from __future__ import annotations

from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from gateways.doors import Door, door, door_process
from rides.scale import LEASE
from servers.fixtures import server_binary
from servers.mortal_server import MortalServer
from workers.control_processes import ControlProcess, control_process
from workers.forkserver import ForkedWorker, forked_null_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

PARTS = ("gateway", "worker", "server", "control")


class Deployment:
    """Runs the parts, and lets another take the place of each that is killed.

    The gateways that are never killed run beside the test, those that may be in processes of their
    own. Of several workers the eldest is killed: what it held goes to the others. `settings` are
    those of the workers.
    """

    def __init__(
        self,
        server: MortalServer,
        pool: str,
        mortal: Collection[str],
        num_workers: int,
        settings: dict[str, Any],
    ) -> None:
        self.server = server
        self.pool = pool
        self.doors: list[Door] = []
        self._mortal = mortal
        self._settings = settings
        self._stack = AsyncExitStack()
        self._num_workers = num_workers
        self._workers: deque[ForkedWorker] = deque()
        self._control: ControlProcess | None = None
        self._turn = 0

    async def __aenter__(self) -> Self:
        """Start all."""
        for _ in range(self._num_workers):
            await self._start_worker()
        await self._start_control()
        kinds = [door, door_process] if "gateway" in self._mortal else [door, door]
        for kind in kinds:
            made = kind(self.server.url, self.pool)
            self.doors.append(await self._stack.enter_async_context(made))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def next_door(self) -> Door:
        """Return a gateway, each in its turn."""
        self._turn += 1
        return self.doors[self._turn % len(self.doors)]

    async def kill(self, part: str) -> None:
        """Kill a part and let another take its place."""
        match part:
            case "server":
                self.server.kill()
                await self.server.start()
            case "worker":
                self._workers.popleft().kill()
                await self._start_worker()
            case "control":
                assert self._control is not None
                self._control.kill()
                await self._start_control()
            case _:
                process = self.doors[-1].process
                assert process is not None
                process.kill()
                made = door_process(self.server.url, self.pool)
                self.doors[-1] = await self._stack.enter_async_context(made)

    async def _start_worker(self) -> None:
        made = forked_null_worker(self.pool, self.server.url, **(LEASE | self._settings))
        self._workers.append(await self._stack.enter_async_context(made))

    async def _start_control(self) -> None:
        made = control_process(self.pool, self.server.url, log_level="info")
        self._control = await self._stack.enter_async_context(made)
        await self._control.until_logged("control.started")


@asynccontextmanager
async def deployed(
    kind: str, pool: str, mortal: Collection[str], num_workers: int = 1, **settings: Any
) -> AsyncIterator[Deployment]:
    """Run a server that may die and the parts beside it."""
    server = MortalServer(server_binary(kind))
    try:
        await server.start()
        async with Deployment(server, pool, mortal, num_workers, settings) as running:
            yield running
    finally:
        server.close()
