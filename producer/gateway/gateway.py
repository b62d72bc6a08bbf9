"""The gateway: what every route is given, and who calls it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request  # noqa: TC002 - FastAPI reads the annotation

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.gateway.wire.refusals import unreachable

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from tokenbus.producer.gateway.access.caller import Caller
    from tokenbus.producer.gateway.access.key_ring import KeyRing
    from tokenbus.producer.gateway.jobs.job_door import JobDoor
    from tokenbus.producer.gateway.jobs.open_streams import OpenStreams
    from tokenbus.producer.gateway.pools.served_models import ServedModels
    from tokenbus.producer.gateway.settings import GatewaySettings
    from tokenbus.producer.telemetry.gateway_metrics import GatewayMetrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """The parts of one gateway process.

    redis: for the keys of the deployment.
    door: jobs of callers, submitted and found again.
    streams: the requests that wait for jobs.
    result_ttl_s: how long the result of a job is kept, and with it what streams it again.
    """

    settings: GatewaySettings
    redis: Redis
    models: ServedModels
    keys: KeyRing
    door: JobDoor
    streams: OpenStreams
    metrics: GatewayMetrics
    result_ttl_s: float


async def caller(request: Request) -> Caller:
    """Return who makes a request, for `Depends(caller)`. Raises: ApiError 401, 503."""
    gateway: Gateway = request.app.state.gateway
    try:
        return await gateway.keys.caller_of(request.headers.get("authorization"))
    except SERVER_ERRORS:
        raise unreachable() from None
