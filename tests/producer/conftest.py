"""Fixtures of the client side: a server of each kind, and a pool of one's own on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from servers.fixtures import pool, redis_url, server

from tokenbus.producer.scripts import Scripts
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.server.connection import make_redis
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tokenbus.producer.server.embedded import EmbeddedServer

__all__ = ["pool", "redis_url", "server"]


@pytest.fixture
async def scripts(redis_url: str, pool: str) -> AsyncIterator[Scripts]:
    """Give the scripts of an empty pool; its keys are deleted afterwards."""
    redis = make_redis(redis_url)
    made = Scripts(redis, pool)
    yield made
    if keys := [key async for key in redis.scan_iter(f"{{tb:{pool}*", count=1000)]:
        await redis.delete(*keys)
    await redis.aclose()


@pytest.fixture
def completion(scripts: Scripts) -> JobCompletion:
    """Give the chains over the scripts."""
    return JobCompletion(scripts)


@pytest.fixture(scope="session")
def private_server() -> Iterator[EmbeddedServer]:
    """Run one embedded server, for tests that need no second kind."""
    running = start_private()
    yield running
    running.close()
