"""Routes that say how the door is: `/healthz`, `/readyz`, `/metrics`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from starlette.responses import Response

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.gateway.jobs.open_streams import draining
from tokenbus.producer.gateway.wire.api_description import ERROR_RESPONSES
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.telemetry.gateway_metrics import MEDIA_TYPE

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.producer.gateway.gateway import Gateway
    from tokenbus.producer.gateway.pools.pool_view import PoolView

# Workers whose phases are told.
_MAX_SHOWN = 8


def router(gateway: Gateway) -> APIRouter:
    """Return the routes; none of them asks for a key."""
    routes = APIRouter(tags=["health"], responses={503: ERROR_RESPONSES[503]})

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @routes.head("/health", include_in_schema=False)
    @routes.get("/health")
    async def health() -> dict[str, str]:
        """Tell that the process answers, where tools for vLLM's server look for it."""
        return await healthz()

    @routes.head("/readyz", include_in_schema=False)
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
            raise ApiError(503, why_not(pools.values()), code="no_worker")
        return {"status": "ok", "phase": "ready", "num_pools": len(ready)}

    @routes.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics of this process, in the text format of Prometheus."""
        return Response(gateway.metrics.text(len(gateway.streams)), media_type=MEDIA_TYPE)

    return routes


def why_not(pools: Iterable[PoolView]) -> str:
    """Say that no worker can run jobs, and what those are at that are there."""
    phases = [phase for pool in pools for phase in pool.phases]
    if not phases:
        return "No worker can run jobs: none is there."
    shown = "; ".join(phases[:_MAX_SHOWN])
    return f"No worker can run jobs yet. {shown}{' …' if len(phases) > _MAX_SHOWN else ''}"
