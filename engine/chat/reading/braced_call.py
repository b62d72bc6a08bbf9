"""Calls whose arguments are an object with bare keys, its strings between marks (Gemma 4)."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tokenbus.engine.chat.reading.json_text import escaped_text, json_string, json_value
from tokenbus.engine.chat.reading.marks import Marks, text_up_to
from tokenbus.engine.chat.reading.python_literal import as_json, is_json, python_as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.chat.reading.call_recorder import CallRecorder
    from tokenbus.engine.chat.reading.incremental_text import IncrementalText

_NAME = re.compile(r"[\w.-]*")
_KEY = re.compile(r"[^:{}\[\],<\"]*")
_BARE = re.compile(r"[^,{}\[\]]*")
# As for calls of Python: each level is a generator within another.
_MAX_DEPTH = 100


def braced_call(
    source: IncrementalText, written: CallFormat, calls: CallRecorder
) -> Generator[None, None, bool]:
    """Read a name and its arguments in braces; tell whether they are whole."""
    yield from source.skip_space()
    yield from source.take(written.name_prefix)
    name = yield from source.run(_NAME)
    calls.is_likely = calls.is_beginning(name)
    if not calls.knows(name) or (yield from source.skip_space()) != "{":
        return False
    calls.open(name)
    is_whole = yield from _BracedValue(source, written.quote, calls.add).read(0)
    if is_whole:
        calls.complete()
    return is_whole


class _BracedValue:
    """Reads a value and hands its JSON on while it is read."""

    __slots__ = ("_add", "_marks", "_quote", "_source")

    def __init__(self, source: IncrementalText, quote: str, add: Callable[[str], None]) -> None:
        self._source = source
        self._quote = quote
        self._marks = Marks({quote})
        self._add = add

    def read(self, depth: int) -> Generator[None, None, bool]:
        """Read one value; tell whether it is whole and not too deep."""
        source = self._source
        begins = yield from source.skip_space()
        if begins in ("{", "["):
            return depth < _MAX_DEPTH and (yield from self._container(begins, depth))
        if (yield from source.take(self._quote)):
            return (yield from self._string())
        if begins == '"':
            source.begin_copy(self._add)
            is_whole = yield from json_value(source)
            source.end_copy()
            return is_whole
        word = (yield from source.run(_BARE)).strip()
        if not word or not (yield from source.peek()):
            return False
        written = word if is_json(word) else python_as_json(word)
        self._add(as_json(word) if written is None else written)
        return True

    def _container(self, opening: str, depth: int) -> Generator[None, None, bool]:
        """Read an object or a list."""
        source, closing = self._source, "}" if opening == "{" else "]"
        source.at += 1
        self._add(opening)
        keys: set[str] = set()
        num_read = 0
        while (yield from source.skip_space()) != closing:
            if num_read and not (yield from source.take(",")):
                return False
            if num_read:
                self._add(", ")
            num_read += 1
            if opening == "{" and not (yield from self._key(keys)):
                return False
            if not (yield from self.read(depth + 1)):
                return False
        source.at += 1
        self._add(closing)
        return True

    def _key(self, keys: set[str]) -> Generator[None, None, bool]:
        """Read a key and its colon; False if it is none, or was there before."""
        source = self._source
        begins = yield from source.skip_space()
        key: str | None
        if (yield from source.take(self._quote)):
            parts: list[str] = []
            mark = yield from text_up_to(source, self._marks, parts.append)
            source.at += len(mark or "")
            key = None if mark is None else "".join(parts)
        elif begins == '"':
            key = yield from json_string(source)
        else:
            key = (yield from source.run(_KEY)).strip()
        yield from source.skip_space()
        if not key or key in keys or not (yield from source.take(":")):
            return False
        keys.add(key)
        self._add(f"{json.dumps(key, ensure_ascii=False)}: ")
        return True

    def _string(self) -> Generator[None, None, bool]:
        """Read a text up to the mark that closes it."""
        self._add('"')
        mark = yield from text_up_to(
            self._source, self._marks, lambda text: self._add(escaped_text(text)), lambda: True
        )
        if mark is None:
            return False
        self._source.at += len(mark)
        self._add('"')
        return True
