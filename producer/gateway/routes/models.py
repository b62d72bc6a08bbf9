"""Routes of the models: `/v1/models`, `/v1/models/{model}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends

from tokenbus.producer.gateway.access.caller import Caller  # noqa: TC001 - FastAPI reads it
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.wire.api_description import ERROR_RESPONSES
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenbus.producer.gateway.gateway import Gateway
    from tokenbus.producer.gateway.pools.pool_view import PoolView


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["models"], responses=ERROR_RESPONSES)

    @routes.get("/v1/models")
    async def list_models(who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """List the names that the caller may ask for: of pools that live, and their aliases."""
        names, pools = await gateway.models.names(who), await gateway.models.pools()
        told = [_model(name, names[name], pools) for name in sorted(names)]
        return {"object": "list", "data": told}

    @routes.get("/v1/models/{model:path}")
    async def show_model(model: str, who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """Show one of them."""
        if not model:
            return await list_models(who)
        names = await gateway.models.names(who)
        if model not in names:
            raise ApiError(
                404, f"The model '{model}' does not exist.", code="model_not_found", param="model"
            )
        return _model(model, names[model], await gateway.models.pools())

    return routes


def _model(name: str, pool: str, pools: Mapping[str, PoolView]) -> dict[str, Any]:
    """Return a model; how long a text it takes is told as vLLM does, whose clients look there."""
    view = pools.get(pool)
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "tokenbus",
        "max_model_len": None if view is None else view.max_model_len,
        "pool": pool,
    }
