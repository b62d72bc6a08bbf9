"""Servers for tests: the embedded Valkey, and Redis from PATH where it is new enough.

A `conftest.py` that imports `server` and `redis_url` gives its tests both, one after the other.
Each server is private to the test run: it ends with the process, however that ends.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import uuid
from typing import TYPE_CHECKING

import pytest
from matrix import SERVER_KINDS
from patience import PATIENCE_S

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server.connection import make_redis
from tokenbus.producer.server.embedded import EmbeddedServer, find_server_binary, start_private

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def server_binary(kind: str) -> str:
    """Return the binary of a kind of server; skip the test where this machine has none."""
    if kind == "valkey":
        return find_server_binary()
    path = shutil.which("redis-server")
    if path is None:
        pytest.skip("no redis-server on PATH")
    text = subprocess.run(
        [path, "--version"], capture_output=True, text=True, timeout=PATIENCE_S
    ).stdout
    version = re.search(r"v=(\d+)\.(\d+)", text)
    if version is None or (int(version[1]), int(version[2])) < (7, 0):
        pytest.skip(f"redis-server on PATH is older than 7.0: {text.strip()}")
    return path


@pytest.fixture(scope="session", params=SERVER_KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """Run one server of each kind for the whole session."""
    running = start_private(server_binary(request.param))
    yield running
    running.close()


@pytest.fixture(scope="session", name="server")
def valkey_server() -> Iterator[EmbeddedServer]:
    """Run one server, for tests of what needs only the commands that every kind has."""
    running = start_private(server_binary("valkey"))
    yield running
    running.close()


@pytest.fixture
def redis_url(server: EmbeddedServer) -> str:
    """Return the URL of the server."""
    return server.url


@pytest.fixture
def pool() -> str:
    """Return a pool that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


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
async def client(redis_url: str, pool: str) -> AsyncIterator[AsyncClient]:
    """Give a client of an empty pool."""
    async with await AsyncClient.connect(redis_url, pool=pool) as made:
        yield made
