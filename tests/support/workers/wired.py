"""A worker process behind a wire of its own, so that it alone can be made to suffer."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servers.wire_proxy import WireProxy
from workers.forkserver import ForkedWorker, forked_worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from servers.wire_proxy import Moment, Trap


@dataclass(frozen=True, slots=True)
class WiredWorker(ForkedWorker):
    """A worker process and its wire to the server."""

    wire: WireProxy

    def die_at(self, script: str, moment: Moment, nth: int = 1) -> Trap:
        """Kill the worker at its `nth` call of a script."""
        return self.wire.trap(script, moment, self.kill, nth)


@asynccontextmanager
async def wired_worker(*, redis_url: str, **values: Any) -> AsyncIterator[WiredWorker]:
    """Run a worker with these settings on a wire to the server."""
    async with (
        WireProxy(Path(redis_url.removeprefix("unix://"))) as wire,
        forked_worker(redis_url=wire.url, **values) as worker,
    ):
        yield WiredWorker(worker.process, wire)
