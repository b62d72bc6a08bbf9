"""Routes of chats: `/v1/chat/completions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from tokenbus.producer.gateway.access.caller import Caller  # noqa: TC001 - FastAPI reads it
from tokenbus.producer.gateway.answering import answer
from tokenbus.producer.gateway.body import read_object
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.wire.api_description import CHAT_BODY, STREAM_RESPONSES
from tokenbus.producer.gateway.wire.generation import asked_of

if TYPE_CHECKING:
    from tokenbus.producer.gateway.gateway import Gateway


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["chat"])
    settings = gateway.settings

    @routes.post(
        "/v1/chat/completions",
        response_class=Response,
        responses=STREAM_RESPONSES,
        openapi_extra={"requestBody": CHAT_BODY},
    )
    async def create_chat(request: Request, who: Annotated[Caller, Depends(caller)]) -> Response:
        """Answer a conversation, as a stream or at once; with Last-Event-ID, the rest of one."""
        body = await read_object(request, settings)
        asked = asked_of(body, who.priorities, takes="messages", is_strict=settings.gateway_strict)
        names: dict[str, str] = {}
        if "max_completion_tokens" in asked.fields:
            names["max_tokens"] = "max_completion_tokens"
        elif "max_tokens" not in asked.fields:
            asked.default_tokens = settings.gateway_chat_tokens
            names["max_tokens"] = "messages"
        prompt: dict[str, Any] = {"messages": asked.fields.pop("messages")}
        return await answer(gateway, request, who, asked, [prompt], "chat", [names])

    return routes
