"""The application: connected when it starts, with all routes, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.gateway.access.api_keys import ApiKeys
from tokenbus.producer.gateway.access.key_ring import KeyRing
from tokenbus.producer.gateway.access.limits import KeyUse
from tokenbus.producer.gateway.access.shares import Shares
from tokenbus.producer.gateway.door_guard import DoorGuard
from tokenbus.producer.gateway.gateway import Gateway
from tokenbus.producer.gateway.jobs.job_door import JobDoor
from tokenbus.producer.gateway.jobs.open_streams import OpenStreams
from tokenbus.producer.gateway.pools.served_models import ServedModels
from tokenbus.producer.gateway.routes import (
    batches,
    board,
    board_pages,
    chat,
    completions,
    files,
    health,
    jobs,
    models,
    responses,
    tokens,
    ui_stream,
)
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.gateway.wire.refusals import api_error, unreachable
from tokenbus.producer.settings import ClientSettings
from tokenbus.producer.telemetry.gateway_metrics import GatewayMetrics

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request
    from redis.asyncio import Redis

    from tokenbus.producer.gateway.settings import GatewaySettings

# One module a group of routes.
ROUTERS = (
    health.router,
    models.router,
    chat.router,
    completions.router,
    jobs.router,
    ui_stream.router,
    responses.router,
    files.router,
    batches.router,
    tokens.router,
    board.router,
    board_pages.router,
)
# Of a board that stands alone.
BOARD_ROUTERS = (health.router, board.router, board_pages.router)


def create_app(settings: GatewaySettings) -> FastAPI:
    """Return the application of one process; it connects in its lifespan.

    Starting it raises: what `AsyncClient.connect` raises.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _opened(settings, metrics) as gateway:
            app.state.gateway = gateway
            groups = ROUTERS if settings.gateway_serves_api else BOARD_ROUTERS
            app.state.routers = [router(gateway) for router in groups]
            for router in app.state.routers:
                app.include_router(router)
            yield

    metrics = GatewayMetrics(settings.gateway_metrics_tenants)
    app = FastAPI(title="tokenbus", lifespan=lifespan, openapi_url="/openapi.json")
    app.openapi = partial(_described, app)  # type: ignore[method-assign]  # as FastAPI says it
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(ProducerError, _producer_error)
    for kind in SERVER_ERRORS:
        app.add_exception_handler(kind, _server_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(
        DoorGuard, max_header_bytes=settings.gateway_max_header_bytes, metrics=metrics
    )
    if settings.gateway_cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.gateway_cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    return app


@asynccontextmanager
async def _opened(settings: GatewaySettings, metrics: GatewayMetrics) -> AsyncIterator[Gateway]:
    """Connect the parts of a gateway, and close them."""
    client_settings = ClientSettings()
    client = await AsyncClient.connect(settings.redis_url, settings.pool, client_settings)
    async with client:
        served = ServedModels(
            client,
            client_settings,
            default_pool=settings.pool,
            names=settings.gateway_model_names,
            aliases=settings.gateway_aliases,
            fallbacks=settings.gateway_fallbacks,
        )
        redis = client.scripts.redis
        keys = KeyRing(
            redis,
            settings.gateway_api_keys,
            given_roles=settings.gateway_api_key_roles,
            is_on=await _asks_for_keys(settings, redis),
        )
        streams = OpenStreams(
            redis,
            keys,
            metrics,
            grace_s=settings.gateway_grace_s,
            keepalive_s=settings.gateway_keepalive_s,
            drain_s=settings.gateway_drain_s,
            form_ttl_s=client_settings.result_ttl_s,
        )
        door = JobDoor(served, keys, KeyUse(redis), Shares(redis), metrics)
        looking = [asyncio.create_task(each.run()) for each in (streams, door.use)]
        try:
            yield Gateway(
                settings=settings,
                redis=redis,
                models=served,
                keys=keys,
                door=door,
                streams=streams,
                metrics=metrics,
                result_ttl_s=client_settings.result_ttl_s,
            )
        finally:
            for task in looking:
                task.cancel()
            await asyncio.gather(*looking, return_exceptions=True)
            await streams.shut()
            await served.close()


async def _asks_for_keys(settings: GatewaySettings, redis: Redis) -> bool:
    """Tell whether requests need a key."""
    if settings.gateway_auth != "auto":
        return settings.gateway_auth == "keys"
    is_asked = bool(settings.gateway_api_keys) or not settings.is_local
    return is_asked or await ApiKeys(redis).is_used()


def error_response(error: ApiError) -> JSONResponse:
    """Return the response of an error."""
    return JSONResponse(error.body(), error.status, error.told_headers())


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _producer_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ProducerError)
    return error_response(api_error(error))


async def _server_error(_: Request, error: Exception) -> JSONResponse:
    del error  # it may quote what lies in the server
    return error_response(unreachable())


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer what FastAPI finds wrong with a path, a query or a body."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = ".".join(place) or None
    told = f"{param}: {first['msg']}" if param else str(first["msg"])
    return error_response(ApiError(400, told, code="invalid_request", param=param))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an unknown path, a wrong method, and what Starlette refuses."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods_of(request))
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(ApiError(error.status_code, str(error.detail), code, headers=headers))


def _methods_of(request: Request) -> list[str]:
    """Return what may be asked of the path of a request: its routes know of themselves alone."""
    found: set[str] = set()
    for route in (route for router in request.app.state.routers for route in router.routes):
        match, _ = route.matches(request.scope)
        if match is not Match.NONE:
            found |= route.methods
    return sorted(found)


def _described(app: FastAPI) -> dict[str, Any]:
    """Return the description of the API, as errors are told here and not as FastAPI would."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path in made["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = made
    return app.openapi_schema
