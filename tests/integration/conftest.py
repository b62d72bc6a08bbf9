"""Fixtures of tests that need a server: one of each kind, an own pool, a client on it.

Where there are two kinds, `make test` runs each test here on one of them, half of the tests on
either, and `make test-full` on both. Scripts and clients are tested on both kinds by themselves.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import pytest
from servers.fixtures import SERVER_KINDS, pool, redis_url, server

from tokenbus.producer.client.async_client import AsyncClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.scripts import Scripts

__all__ = ["pool", "redis_url", "server"]

# Tests of what a server itself does or refuses.
ON_EACH_SERVER = {"test_server_refuses.py", "test_versions.py"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test as slow on one of the two kinds of server, which its name decides."""
    if shutil.which("redis-server") is None:
        return
    here = Path(__file__).parent
    for item in items:
        callspec = getattr(item, "callspec", None)
        kind = callspec.params.get("server") if callspec else None
        if kind is None or item.path.parent != here or item.path.name in ON_EACH_SERVER:
            continue
        name = item.nodeid.replace(kind, "", 1)
        if kind != SERVER_KINDS[crc32(name.encode()) % len(SERVER_KINDS)]:
            item.add_marker(pytest.mark.slow)


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
