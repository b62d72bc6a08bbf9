"""Routes of tokens: `/tokenize`, `/detokenize`, answered by a worker of the pool."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request

from tokenbus.producer.gateway.access.caller import Caller
from tokenbus.producer.gateway.body import read_object
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.pools.prompt_tokens import OF_PROMPT
from tokenbus.producer.gateway.pools.vocabulary import asked
from tokenbus.producer.gateway.wire.api_description import (
    DETOKENIZE_BODY,
    ERROR_RESPONSES,
    TOKENIZE_BODY,
)
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from tokenbus.producer.gateway.gateway import Gateway

_Who = Annotated[Caller, Depends(caller)]


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["tokens"], responses=ERROR_RESPONSES)

    @routes.post("/tokenize", openapi_extra={"requestBody": TOKENIZE_BODY})
    async def tokenize(request: Request, who: _Who) -> dict[str, Any]:
        """Return the tokens of a text, or of a conversation by the model's template."""
        body = await read_object(request, gateway.settings)
        served = await gateway.models.resolve(_model(body), who)
        given = {name: body[name] for name in OF_PROMPT if body.get(name) is not None}
        with_texts = body.get("return_token_strs") is True
        question = {"kind": "tokenize", "request": given, "with_texts": with_texts}
        answer = await asked(served.client, question)
        return {
            "count": len(answer["ids"]),
            "max_model_len": answer["max_model_len"],
            "tokens": answer["ids"],
            "token_strs": answer.get("texts"),
        }

    @routes.post("/detokenize", openapi_extra={"requestBody": DETOKENIZE_BODY})
    async def detokenize(request: Request, who: _Who) -> dict[str, Any]:
        """Return the text of tokens."""
        body = await read_object(request, gateway.settings)
        served = await gateway.models.resolve(_model(body), who)
        question = {"kind": "detokenize", "ids": body.get("tokens")}
        return {"prompt": (await asked(served.client, question))["text"]}

    return routes


def _model(body: dict[str, Any]) -> str | None:
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise ApiError(400, "model: must be text", code="invalid_request", param="model")
    return model
