"""A tenant's shares, as the queue knows them: those that have jobs in a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.keys import NUM_PRIORITIES

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient


async def tenant_shares(client: AsyncClient, tenant: str) -> list[str]:
    """Return a tenant and its shares that have waiting or held jobs.

    Raises: what a call on the server raises.
    """
    # Untyped: redis-py states some of its types wrongly.
    redis: Any = client.scripts.redis
    keys, found = client.scripts.keys, {tenant}
    for priority in map(str, range(NUM_PRIORITIES)):
        names = await redis.hkeys(keys.of("holding", priority))
        names += await redis.zrange(keys.of("backlog", priority), 0, -1)
        found |= {told for name in names if (told := name.decode()).startswith(f"{tenant}/")}
    return sorted(found)
