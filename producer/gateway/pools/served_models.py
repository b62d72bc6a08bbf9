"""The models behind the gateway: from the name in a request to the client of a pool."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.gateway.access.caller import tag_of
from tokenbus.producer.gateway.pools.pool_view import PoolView, known_pools, view_pools
from tokenbus.producer.gateway.pools.vocabulary import Vocabulary
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.producer.gateway.access.caller import Caller
    from tokenbus.producer.settings import ClientSettings

# How old a view of the pools may be.
_VIEW_S = 1.0
_TAG_DIGITS = 6


def pool_tag(pool: str) -> str:
    """Return the six hexadecimal digits by which ids of jobs name their pool."""
    return tag_of(pool, _TAG_DIGITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedPool:
    """A model as a request asks for it: under which name, in which pool, and the way there.

    `max_model_len` is the longest text it takes, in tokens, None where no worker tells.
    """

    name: str
    pool: str
    client: AsyncClient
    max_model_len: int | None = None


class ServedModels:
    """Knows the pools of a server and opens a client for each that is used.

    A name is one of an alias, of a pool, given to the default pool, or of the model of a living
    worker, in this order.
    """

    def __init__(
        self,
        client: AsyncClient,
        client_settings: ClientSettings,
        *,
        default_pool: str,
        names: Sequence[str] = (),
        aliases: Mapping[str, str] | None = None,
        fallbacks: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Begin with the client of the default pool, which stays the caller's to close."""
        self._client_settings = client_settings
        self._default_pool = default_pool
        self._names = tuple(names)
        self._aliases = dict(aliases or {})
        self._fallbacks = {name: tuple(others) for name, others in (fallbacks or {}).items()}
        self._first = client
        self._clients: dict[str, AsyncClient] = {default_pool: client}
        self._opening = asyncio.Lock()
        self._tags = {pool_tag(default_pool): default_pool}
        self._noted: set[str] = set()
        self._vocabularies: dict[str, Vocabulary] = {}
        self._view: dict[str, PoolView] = {}
        self._seen_at = float("-inf")
        self._looking = asyncio.Lock()

    async def close(self) -> None:
        """Close the clients that were opened here."""
        clients = [client for client in self._clients.values() if client is not self._first]
        self._clients = {self._default_pool: self._first}
        for client in clients:
            await client.close()

    async def pools(self, *, max_age_s: float = _VIEW_S) -> Mapping[str, PoolView]:
        """Return all pools by name, as of a moment ago. Raises: ServerError."""
        if time.monotonic() - self._seen_at > max_age_s:
            async with self._looking:
                if time.monotonic() - self._seen_at > max_age_s:
                    self._view = await view_pools(self._first.scripts, self._clients)
                    self._tags |= {pool_tag(name): name for name in self._view}
                    self._seen_at = time.monotonic()
        return self._view

    async def names(self, caller: Caller) -> dict[str, str]:
        """Return the names that a caller may ask for, each with its pool."""
        pools = await self.pools()
        found: dict[str, str] = dict.fromkeys(self._names, self._default_pool)
        for view in pools.values():
            if view.is_ready:
                found |= {name: found.get(name, view.name) for name in view.models}
                found.setdefault(view.name, view.name)
        for alias in self._aliases:
            target = self._pool_of(alias, pools)
            if target is not None:
                found[alias] = target
        return {name: pool for name, pool in found.items() if caller.may_use(pool)}

    async def resolve(self, name: str | None, caller: Caller) -> ServedPool:
        """Return the pool of a model's name; without a name, the default pool.

        Where it has no worker that can run jobs, a fallback that has is taken; where there is none,
        jobs wait in the pool.
        Raises: ApiError 404 for a name that nothing has, 403 for a pool that is not the caller's.
        """
        asked = name or self._default_pool
        pools = await self.pools()
        pool = self._pool_of(asked, pools)
        if pool is None:
            pools = await self.pools(max_age_s=0.1)
            pool = self._pool_of(asked, pools)
        if pool is None:
            raise ApiError(
                404, f"The model '{asked}' does not exist.", code="model_not_found", param="model"
            )
        for other in (*self._fallbacks.get(asked, ()), *self._fallbacks.get(pool, ())):
            if pool in pools and pools[pool].is_ready:
                break
            taken = self._pool_of(other, pools)
            if taken is not None and taken in pools and pools[taken].is_ready:
                pool = taken
        if not caller.may_use(pool):
            raise ApiError(
                403,
                f"The API key may not use the model '{asked}'.",
                code="model_not_allowed",
                param="model",
            )
        view = pools.get(pool)
        return ServedPool(
            name=asked,
            pool=pool,
            client=await self.client(pool),
            max_model_len=None if view is None else view.max_model_len,
        )

    def _pool_of(self, name: str, pools: Mapping[str, PoolView]) -> str | None:
        target = self._aliases.get(name, name)
        if target in pools:
            return target
        if target in self._names:
            return self._default_pool
        views = sorted(pools.values(), key=lambda view: not view.is_ready)
        return next((view.name for view in views if target in view.models), None)

    async def client(self, pool: str) -> AsyncClient:
        """Return the client of a pool, opened on first use. Raises: ServerError."""
        found = self._clients.get(pool)
        if found is None:
            async with self._opening:
                found = self._clients.get(pool)
                if found is None:
                    url = self._first.effective_url
                    found = await AsyncClient.connect(url, pool, self._client_settings)
                    self._clients[pool] = found
        return found

    def vocabulary(self, client: AsyncClient) -> Vocabulary:
        """Return what is known of the tokens of a client's pool."""
        pool = client.scripts.keys.pool
        if pool not in self._vocabularies:
            self._vocabularies[pool] = Vocabulary(client)
        return self._vocabularies[pool]

    async def note(self, pool: str) -> None:
        """Note that jobs were submitted to a pool, so that every door finds it by its tag."""
        if pool not in self._noted:
            # Untyped: redis-py states some of its types wrongly.
            redis: Any = self._first.scripts.redis
            await redis.hset(deployment_keys.pools(), pool_tag(pool), pool)
            self._noted.add(pool)
            self._tags[pool_tag(pool)] = pool

    async def pool_of_tag(self, tag: str) -> str | None:
        """Return the pool that ids of jobs call by a tag; None for one that nobody knows."""
        if tag not in self._tags:
            names = await known_pools(self._first.scripts.redis)
            self._tags |= {pool_tag(name): name for name in names}
        return self._tags.get(tag)
