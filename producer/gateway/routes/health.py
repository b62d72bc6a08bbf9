"""Routes that say how the door is: `/healthz`, `/readyz`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from tokenbus.producer.gateway.gateway import Gateway


def router(gateway: Gateway) -> APIRouter:
    """Return the routes; none of them asks for a key."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @routes.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """Tell whether the server answers and a pool has a worker that can run jobs."""
        try:
            pools = await gateway.models.pools()
        except (ProducerError, *SERVER_ERRORS):
            raise ApiError(503, "The queue does not answer.", code="queue_unreachable") from None
        ready = sorted(name for name, view in pools.items() if view.is_ready)
        if not ready:
            raise ApiError(503, "No worker can run jobs.", code="no_worker")
        return {"status": "ok", "num_pools": len(ready)}

    return routes
