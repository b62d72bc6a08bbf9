"""Routes of the models: `/v1/models`, `/v1/models/{model}`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends

from tokenbus.producer.gateway.access.caller import Caller  # noqa: TC001 - FastAPI reads it
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.wire.api_description import ERROR_RESPONSES
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from tokenbus.producer.gateway.gateway import Gateway


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["models"], responses=ERROR_RESPONSES)

    @routes.get("/v1/models")
    async def list_models(who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """List the names that the caller may ask for: of pools that live, and their aliases."""
        names = await gateway.models.names(who)
        return {"object": "list", "data": [_model(name, names[name]) for name in sorted(names)]}

    @routes.get("/v1/models/{model:path}")
    async def show_model(model: str, who: Annotated[Caller, Depends(caller)]) -> dict[str, Any]:
        """Show one of them."""
        names = await gateway.models.names(who)
        if model not in names:
            raise ApiError(
                404, f"The model '{model}' does not exist.", code="model_not_found", param="model"
            )
        return _model(model, names[model])

    return routes


def _model(name: str, pool: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tokenbus", "pool": pool}
