"""Which answers are watched for keys that repeat, and where JSON stands in them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_format import CallSyntax
from tokenbus.engine.chat.reading.value_types import STRING, argument_types
from tokenbus.engine.grammar.schema.key_watch import is_open
from tokenbus.engine.grammar.watched_answer import WatchedAnswer, WatchedTags

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule
    from tokenbus.engine.grammar.calls.value_rules import Schema

# In JSON that is content a reader would take these for the end of its message.
_CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")


def watched_content(
    chat_format: ChatFormat, reasoning: ReasoningRule, *, is_json: bool = True
) -> WatchedAnswer:
    """Return where content stands, JSON by a schema or any text, behind reasoning."""
    thought = chat_format.reasoning
    may_reason = thought is not None and (reasoning.starts_inside or reasoning.is_allowed)
    return WatchedAnswer(
        opens=thought.opens if thought is not None and may_reason else (),
        closes=thought.closes if thought is not None and may_reason else (),
        starts_inside=reasoning.starts_inside,
        has_channels=chat_format.has_channels,
        is_json=is_json,
    )


def watched_calls(
    content: WatchedAnswer,
    written: CallFormat,
    schemas: Mapping[str, Schema],
    marks: Sequence[str],
    heads: Sequence[str],
    barred: Sequence[str],
) -> WatchedAnswer:
    """Return where JSON stands in answers with calls.

    Args:
        content: what it is without calls.
        marks: those that open calls, as the grammar tells them from text.
        heads: patterns with which calls begin that have no mark.
        barred: marks that must not stand in content that is JSON.
    """
    formats = (written, *written.also_read)
    if written.opens_in_prompt:
        heads = [*heads, *(f"{name}\\s" for name in schemas)]
    return replace(
        content,
        marks=tuple(marks),
        head="|".join(heads),
        barred=_CHANNEL_MARKS if content.has_channels else tuple(barred),
        may_be_python=any(each.syntax is CallSyntax.PYTHON for each in formats),
        quote=written.quote,
        tags=_tags(written, schemas),
    )


def may_repeat(schemas: Mapping[str, Schema]) -> bool:
    """Tell whether arguments may have keys that their schema does not list."""
    return any(is_open(schema) for schema in schemas.values())


def _tags(written: CallFormat, schemas: Mapping[str, Schema]) -> WatchedTags | None:
    tags = written.parameters
    if tags is None:
        return None
    closes = (tags.name_close, tags.string_name_close, tags.untyped_name_close)
    texts = {
        tool: [
            name
            for name in schema.get("properties") or ()
            if argument_types(schema, name) == STRING
        ]
        for tool, schema in schemas.items()
    }
    return WatchedTags(
        call=written.call_open.strip().rpartition("\n")[2],
        open=tags.open,
        name_closes=tuple(filter(None, closes)),
        string_close=tags.string_name_close,
        close=tags.close.strip(),
        texts=texts,
    )
