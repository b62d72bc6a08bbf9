"""Fixtures of tests that need a server: one of each kind, an own pool, a client on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from servers.fixtures import pool, redis_url, server

from tokenbus.producer.client.async_client import AsyncClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.scripts import Scripts

__all__ = ["pool", "redis_url", "server"]


@pytest.fixture
async def client(redis_url: str, pool: str) -> AsyncIterator[AsyncClient]:
    """Give a client of an empty pool; the pool's keys are deleted afterwards."""
    async with await AsyncClient.connect(redis_url, pool=pool) as made:
        yield made
        redis = made.scripts.redis
        async for key in redis.scan_iter(f"{{tb:{pool}*", count=1000):
            await redis.delete(key)


@pytest.fixture
def scripts(client: AsyncClient) -> Scripts:
    """Give the typed calls of the pool."""
    return client.scripts
