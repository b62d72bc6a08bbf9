"""`tokenbus status`: what waits in a pool and which workers live; the health check of a worker."""

from __future__ import annotations

import asyncio
import json
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING

from tokenbus.producer.client.worker_status import WorkerPhase
from tokenbus.producer.commands.hints import connected, server_url
from tokenbus.producer.terminal import visible

if TYPE_CHECKING:
    from tokenbus.producer.client.pool_status import PoolStatus
    from tokenbus.producer.client.worker_status import WorkerStatus

# A health check is asked every few seconds and must not pile up behind a server that is away.
RETRY_FOR_S = 2.0
# Oldest jobs that are printed as text; JSON has all that were read.
_MAX_OLDEST = 5


def run_status(
    url: str | None,
    pool: str,
    *,
    here: bool,
    as_json: bool = False,
    watch_s: float | None = None,
) -> int:
    """Print the status; return 0 if a worker can run jobs, on this host where `here` asks for that.

    One whose engine is down is alive and not ready: it starts another by itself. With `watch_s` the
    status is printed again after so many seconds, until the command is interrupted.
    """
    status = asyncio.run(_show(server_url(url, "status"), pool, as_json, watch_s))
    ready = [name for name in status.ready if not here or host_of(name) == socket.gethostname()]
    return 0 if ready else 1


def host_of(worker: str) -> str:
    """Return the host of a worker; its name is that, a dash and what it drew at its start."""
    return worker.rpartition("-")[0]


async def _show(url: str, pool: str, as_json: bool, watch_s: float | None) -> PoolStatus:
    # A watch goes on through an outage; a check tells of it at once.
    async with connected(url, pool, RETRY_FOR_S if watch_s is None else None) as client:
        while True:
            status = await client.status()
            print(_json(pool, status) if as_json else _text(pool, status), flush=True)
            if watch_s is None:
                return status
            await asyncio.sleep(watch_s)


def _json(pool: str, status: PoolStatus) -> str:
    shown = {
        "pool": pool,
        "paused": status.paused_for_s is not None,
        "paused_for_s": status.paused_for_s,
        "waiting_jobs": status.waiting_jobs,
        "waiting_tokens": status.waiting_tokens,
        "held_jobs": status.held_jobs,
        "kept_bytes": status.kept_bytes,
        "dropped_jobs": status.dropped_jobs,
        "workers": [asdict(worker) for worker in status.details],
        "starting": [asdict(worker) for worker in status.starting],
        "oldest": [asdict(job) for job in status.oldest],
    }
    return visible(json.dumps(shown, ensure_ascii=False))


def _text(pool: str, status: PoolStatus) -> str:
    lines = []
    if status.paused_for_s is not None:
        lines.append(f"pool {pool} is paused for {status.paused_for_s:.0f} s: tokenbus resume")
    lines.append(f"{status.waiting_jobs} jobs wait ({status.waiting_tokens} tokens)")
    lines += [
        f"  priority {job.priority}, {job.tenant}: {job.job_id} waits for {job.age_s:.1f} s"
        for job in status.oldest[:_MAX_OLDEST]
    ]
    lines.append(f"{status.held_jobs} jobs at {len(status.workers)} workers")
    lines += [f"  {_worker(worker)}" for worker in (*status.details, *status.starting)]
    if status.kept_bytes:
        dropped = f", {status.dropped_jobs} results dropped for room" * bool(status.dropped_jobs)
        lines.append(f"finished jobs keep {status.kept_bytes / 2**20:.1f} MiB{dropped}")
    return visible("\n".join(lines), lines=True)


def _worker(worker: WorkerStatus) -> str:
    if worker.outage is not None:
        return f"{worker.name}: {worker.outage}"
    if worker.phase is not WorkerPhase.READY:
        amount = f", {worker.percent} %" if worker.percent else ""
        return f"{worker.name}: {worker.phase}, {worker.phase_told}{amount}".removesuffix(", ")
    told = [worker.model or ""]
    if worker.used_pages is not None:
        told.append(f"pages {worker.used_pages}/{worker.total_pages}")
    if worker.running is not None:
        told.append(f"{worker.running} running")
    if worker.tokens_per_s is not None:
        told.append(f"{worker.tokens_per_s:.1f} tokens/s")
    ttft = worker.latencies.get("ttft")
    if ttft is not None:
        told.append(f"first token after {ttft.p50_ms:.0f} ms, p99 {ttft.p99_ms:.0f}")
    return f"{worker.name}: {', '.join(filter(None, told))}" if any(told) else worker.name
