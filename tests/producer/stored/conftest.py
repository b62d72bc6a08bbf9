"""One server for the tests of what is stored, and a client on it."""

from __future__ import annotations

from servers.fixtures import client, pool, redis_url, valkey_server

__all__ = ["client", "pool", "redis_url", "valkey_server"]
