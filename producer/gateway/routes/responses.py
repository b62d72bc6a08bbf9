"""Routes of responses: `/v1/responses`, created, retrieved, streamed again, cancelled, deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from tokenbus.producer.gateway.access.caller import Caller
from tokenbus.producer.gateway.body import read_object
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.responding import Responding
from tokenbus.producer.gateway.responses.response_request import ResponseRequest
from tokenbus.producer.gateway.wire.api_description import RESPONSE_BODY, STREAM_RESPONSES
from tokenbus.producer.stored.paging import slice_of
from tokenbus.producer.stored.stored_responses import StoredResponses

if TYPE_CHECKING:
    from tokenbus.producer.gateway.gateway import Gateway

Who = Annotated[Caller, Depends(caller)]


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["responses"])
    settings = gateway.settings
    kept = StoredResponses(
        gateway.redis,
        ttl_s=settings.gateway_response_ttl_s,
        owner_bytes=settings.gateway_response_bytes,
    )
    responding = Responding(gateway, kept)
    _add_create(routes, gateway, responding)
    _add_each(routes, responding)
    return routes


def _add_create(routes: APIRouter, gateway: Gateway, responding: Responding) -> None:
    @routes.post(
        "/v1/responses",
        response_class=Response,
        responses=STREAM_RESPONSES,
        openapi_extra={"requestBody": RESPONSE_BODY},
    )
    async def create_response(request: Request, who: Who) -> Response:
        """Create a response, answered at once, as a stream, or in the background."""
        asked = ResponseRequest.parse(await read_object(request, gateway.settings))
        return await responding.create(request, who, asked)


def _add_each(routes: APIRouter, responding: Responding) -> None:
    @routes.get("/v1/responses/{response_id}", response_model=None, responses=STREAM_RESPONSES)
    async def get_response(
        response_id: str,
        who: Who,
        starting_after: Annotated[int | None, Query(ge=0, le=2**53)] = None,
        *,
        stream: bool = False,
    ) -> Response | dict[str, Any]:
        """Return a response as it stands, or its events after a sequence number."""
        if stream:
            after = -1 if starting_after is None else starting_after
            return await responding.stream(who, response_id, after)
        return await responding.show(who, response_id)

    @routes.post("/v1/responses/{response_id}/cancel", responses=STREAM_RESPONSES)
    async def cancel_response(response_id: str, who: Who) -> dict[str, Any]:
        """End a response; what was generated stays."""
        return await responding.cancel(who, response_id)

    @routes.delete("/v1/responses/{response_id}", responses=STREAM_RESPONSES)
    async def delete_response(response_id: str, who: Who) -> dict[str, Any]:
        """Forget a response."""
        await responding.remove(who, response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @routes.get("/v1/responses/{response_id}/input_items", responses=STREAM_RESPONSES)
    async def list_input_items(
        response_id: str,
        who: Who,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> dict[str, Any]:
        """List the input of a response, the last item first unless it is to ascend."""
        stored = await responding.get(who, response_id)
        items = stored.items if order == "asc" else stored.items[::-1]
        return slice_of(items, after, limit)
