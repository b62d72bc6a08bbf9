"""The form of answers: how they are to be read, and which special tokens are in their text."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.grammar.tool_format import HERMES, LLAMA3, MISTRAL
from tokenbus.producer.contract.messages.job_chat import JobChat, typing_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.grammar.tool_calls import ToolCalling

_NAMES = {HERMES: "hermes", MISTRAL: "mistral", LLAMA3: "llama-3"}


def format_of(calling: ToolCalling) -> ChatFormat:
    """Return the chat format in which a model calls tools."""
    return format_named(_NAMES[calling.format])


def chat_of(
    chat_format: ChatFormat,
    tools: Iterable[Mapping[str, Any]],
    *,
    starts_in_reasoning: bool = False,
) -> JobChat | None:
    """Return how the answers to a conversation are read; None if they are nothing but content.

    Args:
        tools: those that may be called, as chat APIs spell them.
    """
    functions = [tool["function"] for tool in tools]
    if not functions and chat_format.reasoning is None:
        return None
    needs_types = _needs_types(chat_format)
    schemas = {
        function["name"]: typing_part(function["parameters"]) if needs_types else {}
        for function in functions
    }
    return JobChat(chat_format.name, schemas, starts_in_reasoning)


@lru_cache(maxsize=16)
def shown_ids(name: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the added tokens that occur in the marks of a format: they are part of the text."""
    texts = format_named(name).texts
    return tuple(
        token_id
        for token, token_id in tokenizer.get_added_vocab().items()
        if any(token in text for text in texts)
    )


def _needs_types(chat_format: ChatFormat) -> bool:
    """Tell whether the format writes values without quotes, so that schemas say what they are."""
    calls = chat_format.calls
    return calls is not None and any(
        each.parameters is not None for each in (calls, *calls.also_read)
    )
