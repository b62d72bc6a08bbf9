"""`tokenbus keys`: make, list and revoke the API keys of the gateways of a server."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.living_pools import living_pools
from tokenbus.producer.commands.hints import connected, server_url, tell
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.gateway.access.api_keys import LIMITS, TENANT_PATTERN, ApiKeys, KeyLimits
from tokenbus.producer.gateway.access.key_ring import BELIEVED_S, caller_of
from tokenbus.producer.gateway.jobs.owned_jobs import owned_jobs
from tokenbus.producer.gateway.pools.pool_view import known_pools
from tokenbus.producer.scripts.replies import JobState
from tokenbus.producer.terminal import visible

if TYPE_CHECKING:
    import argparse

    from tokenbus.producer.gateway.access.api_keys import ApiKey

_LIVE = (JobState.HELD, JobState.WAITING, JobState.DELAYED)


def run_keys(args: argparse.Namespace) -> int:
    """Carry out a command; return 0, or 1 where a key is not there.

    Raises: RequestInvalid, ServerError.
    """
    url = server_url(args.redis, "keys")
    match args.action:
        case "create":
            return asyncio.run(_create(url, args))
        case "list":
            return asyncio.run(_list(url))
        case _:
            return asyncio.run(_revoke(url, args.key_id))


async def _create(url: str, args: argparse.Namespace) -> int:
    if args.tenant and not re.fullmatch(TENANT_PATTERN, args.tenant):
        raise RequestInvalid("tenant", f"is not {TENANT_PATTERN}")
    if not 0 < args.weight <= 1000:
        raise RequestInvalid("weight", "is not within 0 and 1000")
    limits = {name: getattr(args, name) for name in LIMITS}
    for name, value in limits.items():
        if value is not None and value < 0:
            raise RequestInvalid(name, "is negative")
    async with connected(url, "default") as client:
        key, record = await ApiKeys(client.scripts.redis).create(
            tenant=args.tenant or "",
            name=args.name or "",
            weight=args.weight,
            priorities=tuple(dict.fromkeys(args.priority or (1, 0, 2))),
            pools=tuple(args.key_pools or ()),
            limits=KeyLimits(**limits),
            roles=tuple(dict.fromkeys(args.key_roles or ())),
        )
    tell(f"key {record.key_id} of tenant {record.tenant}; it is shown this once")
    print(key)
    return 0


async def _list(url: str) -> int:
    async with connected(url, "default") as client:
        records = await ApiKeys(client.scripts.redis).records()
    for record in records:
        print(visible(_line(record)))
    return 0


def _line(record: ApiKey) -> str:
    """Return the line of a key; of the key itself nothing is known."""
    told = [record.key_id, "revoked" if record.revoked else "good", f"tenant={record.tenant}"]
    if record.name:
        told.append(f"name={record.name}")
    told.append(f"weight={record.weight:g}")
    told.append(f"priorities={','.join(map(str, record.priorities))}")
    if record.roles:
        told.append(f"roles={','.join(record.roles)}")
    if record.pools:
        told.append(f"pools={','.join(record.pools)}")
    told += [
        f"{name}={value}" for name in LIMITS if (value := getattr(record.limits, name)) is not None
    ]
    return "  ".join(told)


async def _revoke(url: str, key_id: str) -> int:
    async with connected(url, "default") as client:
        redis = client.scripts.redis
        record = await ApiKeys(redis).revoke(key_id)
        if record is None:
            tell(f"no key {key_id}")
            return 1
        pools = {*(await living_pools(client.scripts) or ()), *await known_pools(redis)}
        num_cancelled = 0
        for pause_s in (0.0, BELIEVED_S):
            # A gateway that has read the key just before lets requests in for so long.
            await asyncio.sleep(pause_s)
            for pool in sorted(pools):
                num_cancelled += await _cancel_all(client.effective_url, pool, record)
    tell(f"key {key_id} is revoked; {num_cancelled} jobs cancelled")
    return 0


async def _cancel_all(url: str, pool: str, record: ApiKey) -> int:
    """Cancel the jobs of a key in a pool, and count them."""
    cancelled, owner = set[str](), caller_of(record).id_prefix
    async with await AsyncClient.connect(url, pool) as client:
        while True:
            listed = await owned_jobs(client, owner, record.tenant, states=_LIVE, without=cancelled)
            for job in listed.jobs:
                await client.cancel(job.job_id, job.tenant)
                cancelled.add(job.job_id)
            if listed.is_whole or not listed.jobs:
                break
    return len(cancelled)
