"""The gateway: what every route is given, and who calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotation

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.gateway.access.caller import Caller
    from tokenbus.producer.gateway.access.key_ring import KeyRing
    from tokenbus.producer.gateway.pools.served_models import ServedModels
    from tokenbus.producer.gateway.settings import GatewaySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The parts of one gateway process; `redis` is for the keys of the deployment."""

    settings: GatewaySettings
    redis: Redis
    models: ServedModels
    keys: KeyRing


async def caller(request: Request) -> Caller:
    """Return who makes a request, for `Depends(caller)`. Raises: ApiError 401."""
    gateway: Gateway = request.app.state.gateway
    return await gateway.keys.caller_of(request.headers.get("authorization"))
