"""One server for the tests of the control service, and a pool of one's own on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from servers.fixtures import client, pool, redis_url, valkey_server

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.scripts import Scripts

__all__ = ["client", "pool", "redis_url", "valkey_server"]


@pytest.fixture
def scripts(client: AsyncClient) -> Scripts:
    """Give the typed calls of the pool."""
    return client.scripts
