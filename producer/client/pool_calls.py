"""Calls about a pool as a whole: its jobs, its state, a pause."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.producer.client.job_list import LISTED_STATES, list_jobs
from tokenbus.producer.client.pool_status import read_status
from tokenbus.producer.server.connection import retrying

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.client.fork_guard import LoopGuard
    from tokenbus.producer.client.job_list import JobList
    from tokenbus.producer.client.pool_status import PoolStatus
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.server.connection import Server
    from tokenbus.producer.settings import ClientSettings


class PoolCalls:
    """The calls of `AsyncClient` that are about no job of the caller's own."""

    _home: LoopGuard
    _server: Server
    _scripts: Scripts
    _settings: ClientSettings

    async def list_jobs(
        self,
        *,
        tenant: str | None = None,
        states: Sequence[str] = LISTED_STATES,
        limit: int = 100,
    ) -> JobList:
        """List jobs that have not ended, of one tenant if it is given, 1,000 at most.

        `states` are of held, waiting, delayed and ending.
        Raises: RequestInvalid, ServerUnreachable.
        """
        self._home.check_loop()
        return await retrying(
            lambda: list_jobs(self._scripts, tenant=tenant, states=states, limit=limit),
            self._server.url,
            self._settings.retry_for_s,
        )

    async def status(self) -> PoolStatus:
        """Return what waits, for how long, and what the workers tell of themselves.

        Raises: ServerUnreachable.
        """
        self._home.check_loop()
        scripts = self._scripts
        return await retrying(
            lambda: read_status(scripts.redis, scripts.keys, with_oldest=True),
            self._server.url,
            self._settings.retry_for_s,
        )

    async def pause(self) -> None:
        """Let no worker of the pool take another job until `resume`, whatever restarts meanwhile.

        Jobs are accepted and wait; those that run go on. Safe to repeat.
        Raises: ServerUnreachable.
        """
        await self._pause(is_paused=True)

    async def resume(self) -> None:
        """Let the workers of the pool take jobs again. Safe to repeat. Raises: as `pause`."""
        await self._pause(is_paused=False)

    async def _pause(self, *, is_paused: bool) -> None:
        self._home.check_loop()
        control = self._scripts.control
        await retrying(
            lambda: control.pause(is_paused=is_paused),
            self._server.url,
            self._settings.retry_for_s,
        )
