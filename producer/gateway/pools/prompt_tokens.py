"""The tokens of prompts that an answer tells again, as a worker of their pool reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.gateway.pools.vocabulary import asked as answer_of
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.gateway.wire.logprob_forms import ToldPrompt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.gateway.wire.generation import GenerationAsked

# What of a request decides on the tokens of its prompt.
OF_PROMPT = (
    "prompt", "messages", "tools", "tool_choice", "chat_template_kwargs", "add_generation_prompt",
    "continue_final_message",
)  # fmt: skip


def check_told_prompts(asked: GenerationAsked) -> None:
    """Refuse a stream that is to tell of its prompt: its frames begin with the answer.

    Raises: ApiError 400.
    """
    if asked.is_streamed and (asked.is_repeated or asked.with_prompt_logprobs):
        param = "echo" if asked.is_repeated else "prompt_logprobs"
        told = f"{param}: only of an answer that is no stream"
        raise ApiError(400, told, code="invalid_request", param=param)


async def told_prompts(
    client: AsyncClient, asked: GenerationAsked, prompts: Sequence[Mapping[str, Any]]
) -> list[ToldPrompt]:
    """Return the prompts that an answer tells of; none where it tells of none.

    Args:
        prompts: of each the field that is its input.
    Raises: ApiError, where no worker knows of their tokens.
    """
    if not (asked.is_repeated or asked.with_prompt_logprobs):
        return []
    return [await _told(client, asked, {**asked.fields, **prompt}) for prompt in prompts]


async def _told(
    client: AsyncClient, asked: GenerationAsked, fields: Mapping[str, Any]
) -> ToldPrompt:
    ids: Sequence[int] = fields.get("token_ids", ())
    pieces: Sequence[str] = ()
    text = fields.get("prompt", "")
    if ids and asked.is_repeated:
        text = (await answer_of(client, {"kind": "detokenize", "ids": ids}))["text"]
    with_tokens = fields.get("prompt_logprobs") is not None
    if ids and with_tokens:
        pieces = (await answer_of(client, {"kind": "texts", "ids": ids}))["texts"]
    elif with_tokens:
        given = {name: fields[name] for name in OF_PROMPT if name in fields}
        question = {"kind": "tokenize", "request": given, "with_texts": True}
        answer = await answer_of(client, question)
        ids, pieces = answer["ids"], answer["texts"]
    return ToldPrompt(
        text, tuple(ids), tuple(pieces), asked.is_repeated, asked.with_prompt_logprobs
    )
