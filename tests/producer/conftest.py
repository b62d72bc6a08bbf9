"""Fixtures of the client side: a server of each kind, and a pool of one's own on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from servers.fixtures import pool, redis_url, scripts, server

from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.server.embedded import EmbeddedServer

__all__ = ["pool", "redis_url", "scripts", "server"]


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
