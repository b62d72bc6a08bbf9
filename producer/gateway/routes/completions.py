"""Routes of text completions: `/v1/completions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from tokenbus.producer.gateway.access.caller import Caller  # noqa: TC001 - FastAPI reads it
from tokenbus.producer.gateway.answering import answer
from tokenbus.producer.gateway.body import read_object
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.wire.api_description import COMPLETION_BODY, STREAM_RESPONSES
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.gateway.wire.generation import asked_of

if TYPE_CHECKING:
    from tokenbus.producer.gateway.gateway import Gateway
    from tokenbus.producer.gateway.wire.generation import GenerationAsked

MAX_PROMPTS = 128


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["completions"])
    settings = gateway.settings

    @routes.post(
        "/v1/completions",
        response_class=Response,
        responses=STREAM_RESPONSES,
        openapi_extra={"requestBody": COMPLETION_BODY},
    )
    async def create_completion(
        request: Request, who: Annotated[Caller, Depends(caller)]
    ) -> Response:
        """Continue a text, or several; with Last-Event-ID, the rest of a stream."""
        body = await read_object(request, settings)
        asked = asked_of(body, who.priorities, takes="prompt", is_strict=settings.gateway_strict)
        common: dict[str, str] = {}
        if "max_completion_tokens" in asked.fields:
            common["max_tokens"] = "max_completion_tokens"
        elif "max_tokens" not in asked.fields:
            asked.default_tokens = settings.gateway_completion_tokens
        _read_echo(asked)
        prompts = prompts_of(asked.fields.pop("prompt"))
        names = [
            common | ({next(iter(prompt)): path} if path else {})
            for prompt, path in zip(prompts, _paths(prompts), strict=True)
        ]
        return await answer(gateway, request, who, asked, prompts, "completion", names)

    return routes


def _read_echo(asked: GenerationAsked) -> None:
    """Ask for the prompt in front of the answer, its logprobs with those. Raises: ApiError 400."""
    given = asked.fields.pop("echo", False)
    if not isinstance(given, bool):
        raise ApiError(400, "echo: must be true or false", code="invalid_request", param="echo")
    asked.is_repeated = given
    num_most = asked.fields.get("logprobs")
    if given and asked.with_logprobs and isinstance(num_most, int):
        asked.fields.setdefault("prompt_logprobs", int(num_most))


def prompts_of(given: Any) -> list[dict[str, Any]]:
    """Return the input of each job: texts, or token ids. Raises: ApiError 400."""
    if isinstance(given, str):
        return [{"prompt": given}]
    if not isinstance(given, list) or not given:
        raise _invalid("must be a text, token ids, or a list of either")
    if all(type(each) is int for each in given):
        return [{"token_ids": given}]
    if len(given) > MAX_PROMPTS:
        raise _invalid(f"{len(given)} prompts; at most {MAX_PROMPTS} go together")
    if all(isinstance(each, str) for each in given):
        return [{"prompt": each} for each in given]
    if all(isinstance(each, list) and each for each in given) and all(
        type(token_id) is int for each in given for token_id in each
    ):
        return [{"token_ids": each} for each in given]
    raise _invalid("must hold texts alone, or lists of token ids alone")


def _paths(prompts: list[dict[str, Any]]) -> list[str]:
    """Return where each prompt stands in the body; empty where its own name says so."""
    if len(prompts) == 1:
        return ["prompt"]
    return [f"prompt.{number}" for number in range(len(prompts))]


def _invalid(told: str) -> ApiError:
    return ApiError(400, f"prompt: {told}", code="invalid_request", param="prompt")
