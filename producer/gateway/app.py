"""The application: connected when it starts, with all routes, and errors in OpenAI's shape."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.gateway.access.key_ring import KeyRing
from tokenbus.producer.gateway.gateway import Gateway
from tokenbus.producer.gateway.pools.served_models import ServedModels
from tokenbus.producer.gateway.routes import health, models
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fastapi import Request

    from tokenbus.producer.gateway.settings import GatewaySettings

_log = logging.getLogger("tokenbus.gateway")

# One module a group of routes.
ROUTERS = (health.router, models.router)


def create_app(settings: GatewaySettings) -> FastAPI:
    """Return the application of one process; it connects in its lifespan.

    Starting it raises: what `AsyncClient.connect` raises.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with _opened(settings) as gateway:
            app.state.gateway = gateway
            for router in ROUTERS:
                app.include_router(router(gateway))
            yield

    app = FastAPI(title="tokenbus", lifespan=lifespan, openapi_url="/openapi.json")
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failure)
    return app


@asynccontextmanager
async def _opened(settings: GatewaySettings) -> AsyncIterator[Gateway]:
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
        is_on = settings.gateway_auth == "keys" or bool(settings.gateway_api_keys)
        redis = client.scripts.redis
        keys = KeyRing(redis, settings.gateway_api_keys, is_on=is_on or not settings.is_local)
        try:
            yield Gateway(settings=settings, redis=redis, models=served, keys=keys)
        finally:
            await served.close()


def error_response(error: ApiError) -> JSONResponse:
    """Return the response of an error."""
    return JSONResponse(error.body(), error.status, dict(error.headers))


async def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """Answer what FastAPI finds wrong with a path, a query or a body."""
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    param = ".".join(place) or None
    told = f"{param}: {first['msg']}" if param else str(first["msg"])
    return error_response(ApiError(400, told, code="invalid_request", param=param))


async def _http_error(_: Request, error: Exception) -> JSONResponse:
    """Answer an unknown path, a wrong method, and what Starlette refuses."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    return error_response(ApiError(error.status_code, str(error.detail), code, headers=headers))


async def _failure(request: Request, error: Exception) -> JSONResponse:
    """Answer a bug, which the log has; the caller is told no more than that."""
    _log.error("request.failed path=%s", request.url.path, exc_info=error)
    return error_response(ApiError(500, "The gateway failed.", code="internal_error"))
