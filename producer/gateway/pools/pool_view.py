"""A view of the pools of a server: which are there, which can run jobs, and what they serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoPermissionError

from tokenbus.producer.client.living_pools import living_pools
from tokenbus.producer.client.pool_status import read_status
from tokenbus.producer.client.worker_status import WorkerPhase
from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.contract.keys import Keys, check_pool

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.asyncio import Redis

    from tokenbus.producer.client.worker_status import WorkerStatus
    from tokenbus.producer.scripts import Scripts

# Pools that are looked at in one view.
MAX_POOLS = 256


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool at one moment; `models` are the names that its workers tell.

    `is_ready` tells whether a worker can run jobs now; `max_model_len` is the longest text that one
    of them takes, in tokens, None where none tells. `phases` say what each worker is at.
    """

    name: str
    models: tuple[str, ...] = ()
    is_ready: bool = False
    waiting_jobs: int = 0
    waiting_tokens: int = 0
    held_jobs: int = 0
    max_model_len: int | None = None
    phases: tuple[str, ...] = ()


async def known_pools(redis: Redis) -> list[str]:
    """Return the names of the pools that any door has submitted to."""
    # Untyped: redis-py states some of its types wrongly.
    untyped: Any = redis
    values: list[bytes] = await untyped.hvals(deployment_keys.pools())
    return [name for value in values if (name := _checked(value)) is not None]


async def view_pools(scripts: Scripts, configured: Iterable[str]) -> dict[str, PoolView]:
    """Look at every pool that is configured, known or alive; two looks per pool and worker.

    One that the server's user may not look at is none.

    Raises: what a call on the server raises.
    """
    names = dict.fromkeys(configured)
    names |= dict.fromkeys(await living_pools(scripts) or ())
    names |= dict.fromkeys(await known_pools(scripts.redis))
    found = {}
    for name in list(names)[:MAX_POOLS]:
        try:
            status = await read_status(scripts.redis, Keys(name, scripts.keys.database))
        except NoPermissionError:
            # Of the pools that are alive, this gateway's user may not look at all.
            continue
        models: dict[str, None] = {}
        for worker in status.details:
            models |= dict.fromkeys(worker.names or filter(None, (worker.model,)))
        lengths = [worker.max_model_len for worker in status.details if worker.max_model_len]
        found[name] = PoolView(
            name,
            tuple(models),
            bool(status.ready),
            status.waiting_jobs,
            status.waiting_tokens,
            status.held_jobs,
            max(lengths, default=None),
            tuple(map(_phase, (*status.details, *status.starting))),
        )
    return found


def _phase(worker: WorkerStatus) -> str:
    """Say what a worker is at, and how far its start is; why it has no engine is for its owners."""
    if worker.phase is not WorkerPhase.STARTING or not worker.phase_told:
        return worker.phase.value
    amount = f", {worker.percent} %" if worker.percent else ""
    return f"{worker.phase.value}: {worker.phase_told}{amount}"


def _checked(name: bytes) -> str | None:
    try:
        return check_pool(name.decode())
    except ValueError:
        return None
