"""Calls whose arguments are JSON: an object with name and arguments, or arguments behind a name."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tokenbus.engine.chat.json_text import json_string, json_value

if TYPE_CHECKING:
    from collections.abc import Generator

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.chat.call_recorder import CallRecorder
    from tokenbus.engine.chat.incremental_text import IncrementalText

_NAME = re.compile(r"[\w.-]*")
_NUMBER = re.compile(r"[0-9]*")
_ID = re.compile(r"[\w-]*")
# Families mix these up.
_ARGUMENTS_KEYS = frozenset({"arguments", "parameters"})
_NULL = re.compile(r"[nul]*")


def json_call(
    source: IncrementalText, written: CallFormat, calls: CallRecorder
) -> Generator[None, None, bool]:
    """Read `{"name": …, "arguments": {…}}` in any order, other keys too; tell whether whole."""
    name, early = "", None
    if not (yield from source.take("{")):
        return False
    while True:
        yield from source.skip_space()
        key = yield from json_string(source)
        yield from source.skip_space()
        if key is None or not (yield from source.take(":")):
            return False
        yield from source.skip_space()
        if key == written.name_key and not name:
            name = (yield from json_string(source)) or ""
            if not calls.knows(name):
                return False
        elif key in _ARGUMENTS_KEYS and early is None and not calls.is_open:
            early = yield from _arguments(source, calls, name)
            if early is None:
                return False
        elif not (yield from json_value(source)):
            return False
        if (yield from source.skip_space()) == ",":
            source.at += 1
            continue
        return (yield from source.take("}")) and _finish(calls, name, early)


def _finish(calls: CallRecorder, name: str, early: str | None) -> bool:
    """Complete a call, and open it first if nothing did: its name came last, or no arguments."""
    if not name:
        return False
    if not calls.is_open:
        calls.open(name)
        calls.add(early or "{}")
    calls.complete()
    return True


def _arguments(
    source: IncrementalText, calls: CallRecorder, name: str
) -> Generator[None, None, str | None]:
    """Read the value of the arguments key; None if it is no object.

    An object opens the call if the name is known, and is handed on while it is read. Otherwise its
    text is returned; so is that of an object in a string, and `{}` for null.
    """
    begins = yield from source.peek()
    if begins == '"':
        text = yield from json_string(source)
        return text if text is not None and is_json_object(text) else None
    if begins == "n":
        return "{}" if (yield from source.run(_NULL)) == "null" else None
    if begins != "{":
        return None
    early: list[str] = []
    if name:
        calls.open(name)
    source.begin_copy(calls.add if name else early.append)
    is_whole = yield from json_value(source)
    source.end_copy()
    return "".join(early) if is_whole else None


def is_json_object(text: str) -> bool:
    """Tell whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def json_arguments(
    source: IncrementalText, written: CallFormat, calls: CallRecorder
) -> Generator[None, None, bool]:
    """Read a name, marks and an object of arguments; tell whether they are whole."""
    yield from source.skip_space()
    yield from source.take(written.name_prefix)
    name = yield from source.run(_NAME)
    number = ""
    if written.index_open and (yield from source.take(written.index_open)):
        number = written.index_open + (yield from source.run(_NUMBER))
    if written.id_open and (yield from source.take(written.id_open)):
        yield from source.run(_ID)
    if name and name == written.content_name:
        return (yield from source.take(written.name_close))
    if not calls.knows(name) or not (yield from source.take_all(written.name_close.split())):
        return False
    if (yield from source.skip_space()) != "{":
        return False
    calls.open(name, f"{written.name_prefix}{name}{number}" if written.keeps_id else "")
    source.begin_copy(calls.add)
    is_whole = yield from json_value(source)
    source.end_copy()
    if is_whole:
        calls.complete()
    return is_whole
