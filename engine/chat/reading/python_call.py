"""Calls written as in Python: `f(a=1, b="x")`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tokenbus.engine.chat.reading.python_literal import python_as_json

if TYPE_CHECKING:
    from collections.abc import Generator

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.chat.reading.call_recorder import CallRecorder
    from tokenbus.engine.chat.reading.incremental_text import IncrementalText

_NAME = re.compile(r"[\w.-]*")
_PLAIN = re.compile(r"""[^"'()\[\]{},]*""")
_IN_STRING = re.compile(r"""(?:[^"'\\\n]++|\\[^\n])*+""")
_CLOSING = {"(": ")", "[": "]", "{": "}"}
# Of Python, and those with signs that names of tools may have too.
_KEYWORD = re.compile(r"\s*([^\W\d][\w.-]*)\s*=(?!=)")
# How Llama 3 calls its built-in tools.
_METHOD = ".call"
# As for JSON; the tokenizer of Python stops at 200 brackets.
_MAX_DEPTH = 100


def python_call(
    source: IncrementalText,
    written: CallFormat,  # noqa: ARG001 - the readers of all syntaxes are called alike
    calls: CallRecorder,
) -> Generator[None, None, bool]:
    """Read a call with its arguments; tell whether it is whole.

    An argument without a name is the one that the tool's schema has in its place.
    """
    name = yield from source.run(_NAME)
    calls.is_likely = calls.is_beginning(name)
    if not calls.knows(name):
        name = name.removesuffix(_METHOD)
    yield from source.skip_space()
    if not calls.knows(name) or not (yield from source.take("(")):
        return False
    calls.is_likely = True
    keys: list[str] = []
    while True:
        element = yield from _element(source)
        if element is None:
            return False
        ends = source.text[source.at] == ")"
        source.at += 1
        is_blank = not element.strip()
        argument = None if is_blank else _argument(element, calls, name, keys)
        if argument is None and not (is_blank and ends):
            return False
        if not calls.is_open:
            calls.open(name)
            calls.add("{")
        if argument is not None:
            calls.add(f"{', ' if len(keys) > 1 else ''}{argument}")
        if ends:
            calls.add("}")
            calls.complete()
            return True


def _argument(element: str, calls: CallRecorder, name: str, keys: list[str]) -> str | None:
    """Return a key and its value as JSON, and add the key; None if that makes no argument."""
    keyword = _KEYWORD.match(element)
    properties = list(calls.schema(name).get("properties") or ())
    if keyword:
        key = keyword[1]
    elif len(keys) < len(properties):
        key = str(properties[len(keys)])
    else:
        return None
    value = python_as_json(element[keyword.end() if keyword else 0 :])
    if value is None or key in keys:
        return None
    keys.append(key)
    return f"{json.dumps(key, ensure_ascii=False)}: {value}"


def _element(source: IncrementalText) -> Generator[None, None, str | None]:
    """Read up to the comma or bracket that ends an argument; None if there is none.

    Line breaks in short strings are written as Python wants them.
    """
    parts: list[str] = []
    closings: list[str] = []
    while True:
        parts.append((yield from source.run(_PLAIN)))
        char = yield from source.peek()
        if not char:
            return None
        if char in "\"'":
            text = yield from _string(source, char)
            if text is None:
                return None
            parts.append(text)
            continue
        if not closings and char in ",)":
            return "".join(parts)
        source.at += 1
        parts.append(char)
        if char in _CLOSING and len(closings) < _MAX_DEPTH:
            closings.append(_CLOSING[char])
        elif char != "," and (not closings or char != closings.pop()):
            return None


def _string(source: IncrementalText, quote: str) -> Generator[None, None, str | None]:
    """Read a string with its quotes, single or triple; None if it does not end."""
    is_long = yield from source.take(quote * 3)
    if not is_long:
        source.at += 1
        if (yield from source.take(quote)):
            return quote * 2
    fence = quote * 3 if is_long else quote
    parts = [fence]
    while True:
        parts.append(source.take_to(source.run_end(_IN_STRING)))
        if (yield from source.take(fence)):
            return "".join([*parts, fence])
        char = yield from source.peek()
        if not char:
            return None
        if char == "\\":
            # A backslash whose character has not come, or that breaks the line.
            while source.at + 1 == len(source.text):
                if not (yield from source.more()):
                    return None
            if source.text[source.at + 1] == "\n":
                parts.append(source.take_to(source.at + 2))
            continue
        source.at += 1
        parts.append("\\n" if char == "\n" and not is_long else char)
