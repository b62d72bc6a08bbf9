"""One server for the tests of what is stored, and a client on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from servers.fixtures import pool, redis_url, server_binary

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.server.embedded import EmbeddedServer, start_private

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

__all__ = ["pool", "redis_url"]


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedServer]:
    """Run a server; what is stored needs the commands that every kind has."""
    running = start_private(server_binary("valkey"))
    yield running
    running.close()


@pytest.fixture
async def client(redis_url: str, pool: str) -> AsyncIterator[AsyncClient]:
    """Give a client of an empty pool."""
    async with await AsyncClient.connect(redis_url, pool=pool) as made:
        yield made
