"""Housekeeping of a pool: coroutines that may be repeated and may be left out once.

Workers reap, tick and complete by themselves every second; this is the backstop for a pool without
a living worker, and does what is nobody else's.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.dead_letters import DeadLetters
from tokenbus.producer.client.pool_figures import read_figures
from tokenbus.producer.scripts.completing import Completed, Retention
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.replies import JobState, RequeueStatus
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.worker.control.settings import ControlSettings

HOUR_MS = 3_600_000
PRESSURE_TTL_MS = 60_000
_USAGE_FIELDS = ("jobs", "prompt_tokens", "cached_tokens", "completion_tokens")
_PAGE = 200


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What a tenant used in one hour; prompt tokens include the cached ones."""

    jobs: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Housekeeping:
    """The chores of one pool. Calls raise what redis raises."""

    def __init__(self, client: AsyncClient, settings: ControlSettings) -> None:
        self._client = client
        self._scripts = client.scripts
        self._redis: Any = client.scripts.redis
        self._keys = client.scripts.keys
        self._settings = settings
        self._retention = Retention(
            int(settings.log_ttl_s * 1000), int(settings.result_ttl_s * 1000)
        )
        self._completion = JobCompletion(client.scripts, self._retention)
        self._name = f"control-{socket.gethostname()}"
        self._log = get_logger()

    async def reap(self) -> None:
        """End what is due and give the jobs of dead workers back, should no worker do it.

        A worker without a lease is struck off when it holds nothing. One that holds jobs is dead
        if it had no lease two leases ago either: a server that was away has dropped the leases of
        the living, who renew theirs first.
        """
        while await self._completion.tick():
            pass
        first = {(o.worker, o.job_id, o.epoch) for o in await self._scripts.lease.scan()}
        if not first:
            return
        began, wait_s = time.monotonic(), 2 * self._settings.lease_ttl_s
        await asyncio.sleep(wait_s)
        asked_at = time.monotonic()
        orphans = await self._scripts.lease.scan()
        if time.monotonic() - began > 2 * wait_s:
            self._log.warning("reap.put_off", reason="the server answered late")
            return
        for orphan in orphans:
            if (orphan.worker, orphan.job_id, orphan.epoch) not in first:
                continue
            status = await self._completion.reap(self._name, orphan, asked_at)
            if status is RequeueStatus.ENDING:
                await self._completion.cancel(orphan.job_id)
            self._log.warning(
                "lease.reclaimed",
                job_id=orphan.job_id,
                dead_worker=orphan.worker,
                epoch=orphan.epoch,
                status=status.value if status is not None else "ended",
            )

    async def retain(self) -> None:
        """Let logs and results expire whose completion a rollback of the server took back.

        Every completion sets these times itself; what has none but the belt of a week, and ended,
        is what this is for.
        """
        num_found = 0
        for kind in ("log", "result"):
            page: list[str] = []
            pattern = f"{{tb:{self._keys.pool}:*}}:{kind}:*"
            async for key in self._redis.scan_iter(match=pattern, count=_PAGE):
                page.append(key.decode().split(f"}}:{kind}:", 1)[1])
                if len(page) == _PAGE:
                    num_found += await self._retain_page(kind, page)
                    page = []
            num_found += await self._retain_page(kind, page)
        if num_found:
            self._log.warning("retention.repaired", num_keys=num_found)

    async def _retain_page(self, kind: str, job_ids: list[str]) -> int:
        """Set the times of ended jobs among `job_ids`, and count them."""
        longest_ms = max(self._retention.log_ms, self._retention.result_ms)
        async with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.pttl(self._keys.log(job_id) if kind == "log" else self._keys.result(job_id))
                pipe.exists(self._keys.result(job_id))
                pipe.hget(self._keys.of("job", job_id), "state")
            replies = await pipe.execute()
        found: list[Completed] = []
        for number, job_id in enumerate(job_ids):
            ttl_ms, has_result, state = replies[3 * number : 3 * number + 3]
            is_over = state is None or state.decode() == JobState.DONE
            # A log without a result has not ended: its job may be handed out again.
            if is_over and has_result and (ttl_ms == -1 or ttl_ms > longest_ms):
                found.append(Completed(job_id))
        await self._scripts.completion.retain(found, self._retention)
        return len(found)

    async def digest(self) -> None:
        """Count the dead letters since the last digest by reason and tenant, and say so once."""
        key = self._keys.of("digest")
        stored = await self._redis.hget(key, "last")
        last = (0, 0) if stored is None else _order(stored.decode())
        newest, reasons, tenants = None, Counter[str](), Counter[str]()
        async for letter in DeadLetters(self._client).newest():
            if _order(letter.entry_id) <= last:
                break
            newest = newest or letter.entry_id
            error = letter.finish.error
            reasons[error.code if error is not None else letter.finish.reason] += 1
            tenants[letter.tenant or "-"] += 1
        if newest is None:
            return
        counts = {
            "reasons": dict(reasons.most_common(20)),
            "tenants": dict(tenants.most_common(20)),
        }
        at_ms = await self._now_ms()
        value = json.dumps({"v": 1, "at_ms": at_ms, "letters": reasons.total(), **counts})
        await self._redis.hset(key, mapping={"last": newest, "digest": value})
        self._log.warning("dead_letters.digested", letters=reasons.total(), **counts)

    async def close_hour(self) -> None:
        """Report what the hour before this one used, all tenants together and the largest ten."""
        hour = await self._now_ms() // HOUR_MS - 1
        used = await read_usage(self._redis, self._keys.of("usage", str(hour)))
        if not used:
            return
        total = {f: sum(getattr(u, f) for u in used.values()) for f in _USAGE_FIELDS}
        largest = sorted(used, key=lambda t: used[t].completion_tokens, reverse=True)[:10]
        self._log.info(
            "usage.hour_closed",
            hour=hour,
            tenants=len(used),
            largest={tenant: used[tenant].completion_tokens for tenant in largest},
            **total,
        )

    async def publish_pressure(self) -> None:
        """Write for autoscalers what waits and how many seconds it takes at the measured rate."""
        figures = await read_figures(self._redis, self._keys, assumed=self._settings.assumed)
        status, rate = figures.status, figures.drain_tokens_per_s
        value = {
            "v": 1,
            "at_ms": figures.at_ms,
            "waiting_jobs": status.waiting_jobs,
            "waiting_tokens": status.waiting_tokens,
            "held_jobs": status.held_jobs,
            "workers": len(status.workers),
            "tokens_per_s": None if rate is None else round(rate, 3),
            "seconds": round(figures.seconds_of_backlog, 3),
            "worker_seconds": round(figures.worker_seconds_of_backlog, 3),
        }
        await self._redis.set(self._keys.of("pressure"), json.dumps(value), px=PRESSURE_TTL_MS)

    async def _now_ms(self) -> int:
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


def _order(entry_id: str) -> tuple[int, int]:
    """Return a stream's entry id as what it is ordered by."""
    at_ms, _, number = entry_id.partition("-")
    return int(at_ms), int(number)


async def read_usage(redis: Any, key: str) -> dict[str, TenantUsage]:
    """Read one hour by tenant."""
    fields: dict[str, dict[str, int]] = {}
    for name, value in (await redis.hgetall(key)).items():
        tenant, _, field = name.decode().rpartition("|")
        if field in _USAGE_FIELDS:
            fields.setdefault(tenant, {})[field] = int(value)
    return {tenant: TenantUsage(**given) for tenant, given in fields.items()}
