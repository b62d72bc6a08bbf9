"""What the page of chat formats shows of each family, column by column."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_format import CallFormat, CallSyntax
from tokenbus.engine.chat.chat_format import FORMATS

if TYPE_CHECKING:
    from tokenbus.engine.chat.chat_format import ChatFormat

HEADINGS = ("family", "format", "marks of calls", "arguments", "calls", "text before", "reasoning")
_ARGUMENTS = {
    CallSyntax.JSON_CALL: "JSON, with the name in it",
    CallSyntax.JSON_ARGUMENTS: "JSON behind the name",
    CallSyntax.PARAMETERS: "tags, types by schema",
    CallSyntax.PYTHON: "Python",
    CallSyntax.BRACED: "bare keys, strings between marks",
}


def chat_rows() -> list[tuple[str, ...]]:
    """Return the cells of every family under those headings."""
    return [(f"`{family}`", *_cells(each)) for family, each in FORMATS.items()]


def _cells(chat_format: ChatFormat) -> tuple[str, ...]:
    calls, reasoning = chat_format.calls, chat_format.reasoning
    thought = f"{_code(reasoning.open)} … {_code(reasoning.close)}" if reasoning else "none"
    if reasoning and reasoning.opens_in_prompt:
        thought += ", opened by the template"
    if calls is None:
        return (f"`{chat_format.name}`", "none", "", "", "", thought)
    number = "several" if calls.is_parallel else "one"
    before = "yes" if calls.has_text_before else "no"
    told = _ARGUMENTS[calls.syntax]
    return (f"`{chat_format.name}`", _marks(calls), told, number, before, thought)


def _marks(calls: CallFormat) -> str:
    opening = calls.section_open or calls.call_open
    if not opening:
        return "none: the call begins the answer"
    return _code(opening + ("[" if calls.is_list else ""))


def _code(text: str) -> str:
    """Return a text as code of Markdown, on one line and within a cell."""
    fence = "``" if "`" in text else "`"
    blank = " " if "`" in text else ""
    shown = " ".join(text.split()).replace("|", "\\|")
    return f"{fence}{blank}{shown}{blank}{fence}"
