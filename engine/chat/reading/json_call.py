"""Calls whose arguments are JSON: an object with name and arguments, or arguments behind a name."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tokenbus.engine.chat.reading.json_text import json_string, json_value

if TYPE_CHECKING:
    from collections.abc import Generator

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.chat.reading.call_recorder import CallRecorder
    from tokenbus.engine.chat.reading.incremental_text import IncrementalText

_NAME = re.compile(r"[\w.-]*")
_NUMBER = re.compile(r"[0-9]*")
_ID = re.compile(r"[\w-]*")
# Families mix these up.
_ARGUMENTS_KEYS = frozenset({"arguments", "parameters"})


def json_call(
    source: IncrementalText, written: CallFormat, calls: CallRecorder
) -> Generator[None, None, bool]:
    """Read `{"name": …, "arguments": {…}}` in any order, other keys too; tell whether whole."""
    if not (yield from source.take("{")):
        return False
    call = _ObjectCall(source, written, calls)
    while True:
        yield from source.skip_space()
        key = yield from json_string(source)
        yield from source.skip_space()
        if key is None or not (yield from source.take(":")):
            return False
        yield from source.skip_space()
        if not (yield from call.read_member(key)):
            return False
        if (yield from source.skip_space()) == ",":
            source.at += 1
            continue
        return (yield from source.take("}")) and call.complete()


class _ObjectCall:
    """A call that is written as one object, while its members are read."""

    __slots__ = ("_calls", "_early", "_name", "_source", "_written")

    def __init__(self, source: IncrementalText, written: CallFormat, calls: CallRecorder) -> None:
        self._source = source
        self._written = written
        self._calls = calls
        self._name = ""
        # Arguments that were read before the call could be opened.
        self._early: str | None = None

    def read_member(self, key: str) -> Generator[None, None, bool]:
        """Read the value of a key; False if no call of a tool has it."""
        if not self._written.name_key:
            # The key is the name, and what is behind it are the arguments; there is no other.
            is_second, self._name = bool(self._name), key
            is_known = self._calls.knows(key) and not is_second
            return is_known and (yield from self._read_arguments())
        if key == self._written.name_key and not self._name:
            self._calls.is_likely = True
            self._name = (yield from json_string(self._source)) or ""
            return self._calls.knows(self._name)
        if key in _ARGUMENTS_KEYS and self._early is None and not self._calls.is_open:
            return (yield from self._read_arguments())
        return (yield from json_value(self._source))

    def complete(self) -> bool:
        """Complete the call, and open it first if nothing did: its name came last, or alone."""
        if not self._name:
            return False
        if not self._calls.is_open:
            self._calls.open(self._name)
            self._calls.add(self._early or "{}")
        self._calls.complete()
        return True

    def _read_arguments(self) -> Generator[None, None, bool]:
        """Read arguments: an object, one in a string, or null for none; tell whether they are.

        An object opens the call if the name is known, and is handed on while it is read.
        """
        source, begins = self._source, (yield from self._source.peek())
        if begins == '"':
            self._early = yield from json_string(source)
            return self._early is not None and is_json_object(self._early)
        if begins == "n":
            self._early = "{}"
            return (yield from source.take("null"))
        if begins != "{":
            return False
        early: list[str] = []
        if self._name:
            self._calls.open(self._name)
        source.begin_copy(self._calls.add if self._name else early.append)
        is_whole = yield from json_value(source)
        source.end_copy()
        self._early = "".join(early)
        return is_whole


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
    calls.is_likely = calls.is_beginning(name)
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
