"""A gateway in front of a null worker, one for each module of tests."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from gateways.doors import Door, door
from workers.null_workers import worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.server.embedded import EmbeddedServer


@pytest.fixture(scope="module")
def module_pool() -> str:
    """Return a pool that no other module uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def null_door(private_server: EmbeddedServer, module_pool: str) -> AsyncIterator[Door]:
    """Run a worker with the null engine and a gateway in front of it."""
    async with (
        worker(module_pool, private_server.url, lease_ttl_s=60),
        door(private_server.url, module_pool) as running,
    ):
        yield running
