"""Conversations with a tool, and small tokenizers to render them with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenbus.engine.grammar.tools import tools_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.text.chat_prompt import ChatRenderer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tell the weather in a town",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
BARE = {"type": "function", "function": {"name": "now", "parameters": {"properties": {"tz": {}}}}}
ASKED = {"role": "user", "content": "What is the weather in Oslo and Bonn?"}


def call(call_id: str, city: str, days: int) -> dict[str, Any]:
    """Return a call as clients give it back: arguments as text."""
    arguments = json.dumps({"city": city, "days": days})
    return {
        "id": call_id,
        "type": "function",
        "function": {"name": "get_weather", "arguments": arguments},
    }


def two_turns() -> list[dict[str, Any]]:
    """Return a conversation with two calls at once, their results, and a call after text."""
    return [
        ASKED,
        {"role": "assistant", "content": None,
         "tool_calls": [call("call_one", "Oslo", 2), call("call_two", "Bonn", 3)]},
        {"role": "tool", "tool_call_id": "call_one", "content": "It snows in Oslo"},
        {"role": "tool", "tool_call_id": "call_two", "content": "It rains in Bonn"},
        {"role": "assistant", "content": "I look again.", "tool_calls": [call("x", "Rome", 4)]},
        {"role": "tool", "tool_call_id": "x", "content": "Sunny in Rome"},
    ]  # fmt: skip


def tokenizer_of(template: str | None, *tokens: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes with a template and tokens of a family."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: idx for idx, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    made.add_tokens([AddedToken(token, normalized=False) for token in tokens])
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    wrapped = build(tokenizer_object=made, eos_token="<|end|>")
    wrapped.chat_template = template
    return wrapped


def prompt_of(chat: ChatRenderer, messages: list[dict[str, Any]], **settings: Any) -> str:
    """Render a conversation with a tool."""
    tools = [WEATHER]
    return chat.render(messages, tools, chat.calling(tools_of(tools)), **settings).text
