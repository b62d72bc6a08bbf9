"""Watched answers by chat format: where JSON stands in them whose keys and items may not repeat."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_format import CallSyntax
from tokenbus.engine.chat.reading.value_types import STRING, argument_types
from tokenbus.engine.grammar.schema.key_watch import is_open
from tokenbus.engine.grammar.watching.list_places import has_marks
from tokenbus.engine.grammar.watching.watched_answer import WatchedAnswer, WatchedLists, WatchedTags

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule
    from tokenbus.engine.grammar.calls.value_rules import Schema

# How one call is written where lists in its arguments are followed.
_FOLLOWED = frozenset({CallSyntax.JSON_CALL, CallSyntax.JSON_ARGUMENTS, CallSyntax.PARAMETERS})
# So much of a mark says where a name begins.
_LEAD = 8
# In JSON that is content a reader would take these for the end of its message.
_CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")


def watched_content(
    chat_format: ChatFormat, reasoning: ReasoningRule, *, is_json: bool = True
) -> WatchedAnswer:
    """Return where content stands, JSON by a schema or any text, behind reasoning."""
    thought = chat_format.reasoning
    may_reason = thought is not None and (reasoning.starts_inside or reasoning.is_allowed)
    barred: tuple[str, ...] = ()
    if is_json:
        # A reader drops what closes a thought, wherever it stands.
        dropped = (*thought.closes, *thought.frame) if thought is not None else ()
        barred = _CHANNEL_MARKS if chat_format.has_channels else dropped
    return WatchedAnswer(
        opens=thought.opens if thought is not None and may_reason else (),
        closes=thought.closes if thought is not None and may_reason else (),
        is_closed_by_calls=thought is not None and thought.is_closed_by_calls,
        starts_inside=reasoning.starts_inside,
        has_channels=chat_format.has_channels,
        frame=thought.frame if thought is not None else (),
        is_json=is_json,
        barred=barred,
    )


def watched_calls(
    content: WatchedAnswer,
    written: CallFormat,
    schemas: Mapping[str, Schema],
    marks: Sequence[str],
    heads: Sequence[str],
    barred: Sequence[str],
    content_schema: Schema | None = None,
) -> WatchedAnswer:
    """Return where JSON stands in answers with calls.

    Args:
        content: what it is without calls.
        marks: those that open calls, as the grammar tells them from text.
        heads: patterns with which calls begin that have no mark.
        barred: marks that must not stand in content that is JSON.
        content_schema: what is enforced of content.
    """
    formats = (written, *written.also_read)
    if written.opens_in_prompt:
        heads = [*heads, *(f"{name}\\s" for name in schemas)]
    return replace(
        content,
        marks=tuple(marks),
        head="|".join(heads),
        barred=tuple(dict.fromkeys((*content.barred, *barred))) if content.is_json else (),
        may_be_python=any(each.syntax is CallSyntax.PYTHON for each in formats),
        quote=written.quote,
        tags=_tags(written, schemas),
        lists=_lists(formats, schemas, content_schema),
    )


def follows_lists(syntax: CallSyntax) -> bool:
    """Tell whether lists are followed in the arguments of calls that are written so."""
    return syntax in _FOLLOWED


def may_repeat(schemas: Iterable[Schema]) -> bool:
    """Tell whether values may have keys that their schema does not list, or followed lists."""
    return any(is_open(schema) or has_marks(schema) for schema in schemas)


def _lists(
    formats: Sequence[CallFormat], schemas: Mapping[str, Schema], content: Schema | None
) -> WatchedLists | None:
    marked = {tool: dict(schema) for tool, schema in schemas.items() if has_marks(schema)}
    content = content if has_marks(content) else None
    if not marked and content is None:
        return None
    written = formats[0]
    objects = [each for each in formats if each.syntax is CallSyntax.JSON_CALL]
    names = {each.name_key for each in objects if each.name_key}
    # Models mix the two up, and are let where calls are free.
    keys = {"arguments", "parameters", *(each.arguments_key for each in objects)}
    is_behind = written.syntax is CallSyntax.JSON_ARGUMENTS and bool(marked)
    return WatchedLists(
        content=content,
        tools=marked,
        name_keys=sorted(names),
        arguments_keys=sorted(keys) if objects else [],
        names=list(schemas) if is_behind else [],
        lead="".join(written.call_open.split())[-_LEAD:],
        name_prefix=written.name_prefix,
    )


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
