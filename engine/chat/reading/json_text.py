"""JSON in a text that arrives in pieces: read to its end and checked, never built."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from tokenbus.engine.chat.reading.incremental_text import IncrementalText

# Readers of JSON refuse deeper values (Python's own at its recursion limit of 1,000).
MAX_DEPTH = 200
# Characters of a number; each piece that arrives is looked at from its beginning.
MAX_LITERAL = 1_000

_CHARACTERS = re.compile(r'(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+')
_ESCAPE_BEGINS = re.compile(r"\\(?:u[0-9a-fA-F]{0,3})?")
_LITERAL_CHARACTERS = re.compile(r"[-+.0-9A-Za-z]*")
_LITERAL = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_CLOSING = {"{": "}", "[": "]"}


def json_string(source: IncrementalText) -> Generator[None, None, str | None]:
    """Read a string and return its text; None if there is none, or the answer ends in it."""
    if (yield from source.peek()) != '"':
        return None
    parts: list[str] = []
    source.at += 1
    while True:
        parts.append(source.take_to(source.run_end(_CHARACTERS)))
        ahead = source.text[source.at : source.at + 6]
        if ahead.startswith('"'):
            source.at += 1
            return str(json.loads(f'"{"".join(parts)}"'))
        if ahead and not _ESCAPE_BEGINS.fullmatch(ahead):
            return None
        if not (yield from source.more()):
            return None


def escaped_text(text: str) -> str:
    """Return a text as it stands in a string of JSON, without the quotes around it."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def json_value(source: IncrementalText) -> Generator[None, None, bool]:
    """Read a value; tell whether it is JSON, whole and not too deep."""
    closings: list[str] = []
    while True:
        opened = yield from source.skip_space()
        if opened in _CLOSING and len(closings) < MAX_DEPTH:
            source.at += 1
            closings.append(_CLOSING[opened])
            is_empty = (yield from source.skip_space()) == closings[-1]
        elif not (yield from _scalar(source)):
            return False
        else:
            is_empty = True
        if is_empty:
            between = yield from _climb(source, closings)
            if between is None:
                return False
            if not between:
                return True
        if closings[-1] == "}" and not (yield from _key(source)):
            return False


def _scalar(source: IncrementalText) -> Generator[None, None, bool]:
    if (yield from source.peek()) == '"':
        return (yield from _string(source))
    while (end := source.run_end(_LITERAL_CHARACTERS)) == len(source.text):
        if end - source.at > MAX_LITERAL or not (yield from source.more()):
            break
    is_literal = _LITERAL.fullmatch(source.text, source.at, end) is not None
    if is_literal:
        source.at = end
    return is_literal


def _string(source: IncrementalText) -> Generator[None, None, bool]:
    """Read a string that is not looked at; its parts are handed on as they come."""
    source.at += 1
    while True:
        source.at = source.run_end(_CHARACTERS)
        ahead = source.text[source.at : source.at + 6]
        if ahead.startswith('"'):
            source.at += 1
            return True
        if ahead and not _ESCAPE_BEGINS.fullmatch(ahead):
            return False
        if not (yield from source.more()):
            return False


def _key(source: IncrementalText) -> Generator[None, None, bool]:
    if (yield from source.skip_space()) != '"' or not (yield from _string(source)):
        return False
    yield from source.skip_space()
    return (yield from source.take(":"))


def _climb(source: IncrementalText, closings: list[str]) -> Generator[None, None, bool | None]:
    """Read what closes values; tell whether another follows, None if neither is there."""
    while closings:
        char = yield from source.skip_space()
        if char not in (closings[-1], ","):
            return None
        if not char:
            return None
        source.at += 1
        if char == ",":
            return True
        closings.pop()
    return False
