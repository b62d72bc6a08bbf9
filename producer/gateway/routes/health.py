"""Routes that say how the door is: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.responses import Response

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.gateway.jobs.open_streams import draining
from tokenbus.producer.gateway.metrics import MEDIA_TYPE
from tokenbus.producer.gateway.wire.api_description import ERROR_RESPONSES
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from tokenbus.producer.gateway.gateway import Gateway


def router(gateway: Gateway) -> APIRouter:
    """Return the routes; none of them asks for a key."""
    routes = APIRouter(tags=["health"], responses={503: ERROR_RESPONSES[503]})

    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @routes.get("/readyz")
    async def readyz() -> dict[str, Any]:
        """Tell whether the server answers and a pool has a worker that can run jobs."""
        if gateway.streams.is_draining:
            raise draining(())
        try:
            pools = await gateway.models.pools()
        except (ProducerError, *SERVER_ERRORS):
            raise ApiError(503, "The queue does not answer.", code="queue_unreachable") from None
        ready = sorted(name for name, view in pools.items() if view.is_ready)
        if not ready:
            raise ApiError(503, "No worker can run jobs.", code="no_worker")
        return {"status": "ok", "num_pools": len(ready)}

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics of this process, in the text format of Prometheus."""
        return Response(gateway.metrics.text(len(gateway.streams)), media_type=MEDIA_TYPE)

    return routes
