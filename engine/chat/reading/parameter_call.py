"""Calls whose arguments stand between tags, one after the other."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import TYPE_CHECKING

from tokenbus.engine.chat.reading.json_text import escaped_text
from tokenbus.engine.chat.reading.marks import Marks, text_up_to
from tokenbus.engine.chat.reading.value_types import STRING, argument_types, value_as_json

if TYPE_CHECKING:
    from collections.abc import Generator

    from tokenbus.engine.chat.call_format import CallFormat, ParameterTags
    from tokenbus.engine.chat.reading.call_recorder import CallRecorder
    from tokenbus.engine.chat.reading.incremental_text import IncrementalText

_NAME = re.compile(r"[\w.-]*")
_KEY = re.compile(r'[^<>"\n]*')


def parameter_call(
    source: IncrementalText, written: CallFormat, calls: CallRecorder
) -> Generator[None, None, bool]:
    """Read a name and its arguments up to what closes the call; tell whether they are whole."""
    tags = written.parameters
    yield from source.skip_space()
    name = yield from source.run(_NAME)
    if tags is None or not calls.knows(name):
        return False
    if not (yield from source.take_all(written.name_close.split())):
        return False
    keys: set[str] = set()
    while True:
        yield from source.skip_space()
        if (yield from source.take(tags.open)):
            if not keys:
                calls.open(name)
            if not (yield from _argument(source, tags, calls, name, keys)):
                return False
        elif (yield from _closes(source, written)):
            if not keys:
                calls.open(name)
            calls.add("}" if keys else "{}")
            calls.complete()
            return True
        else:
            return False


def _closes(source: IncrementalText, written: CallFormat) -> Generator[None, None, bool]:
    """Tell whether a mark comes next that closes the call; models leave one of two out."""
    for part in (written.call_close or written.section_close).split():
        if (yield from source.comes(part)):
            return True
    return False


def _argument(
    source: IncrementalText, tags: ParameterTags, calls: CallRecorder, name: str, keys: set[str]
) -> Generator[None, None, bool]:
    """Read one argument behind the tag that opens it; False if it is none, or was there before."""
    key = (yield from source.run(_KEY)).strip()
    types = argument_types(calls.schema(name), key)
    if tags.string_name_close and (yield from source.take(tags.string_name_close)):
        types = STRING
    elif tags.untyped_name_close and (yield from source.take(tags.untyped_name_close)):
        pass
    elif not (yield from source.take_all(tags.name_close.split())):
        return False
    elif tags.string_name_close:
        types -= STRING
    if not key or key in keys:
        return False
    if tags.name_close.endswith("\n"):
        yield from source.take("\n")
    calls.add(f"{', ' if keys else '{'}{json.dumps(key, ensure_ascii=False)}: ")
    keys.add(key)
    return (yield from _value(source, tags, calls, types))


def _value(
    source: IncrementalText, tags: ParameterTags, calls: CallRecorder, types: frozenset[str]
) -> Generator[None, None, bool]:
    """Read a value and the tag that closes it; strings are handed on while they are read."""
    if tags.raw_open and (yield from source.take(tags.raw_open)):
        return (yield from _raw_value(source, tags, calls))
    marks = _closing_marks(tags)
    parts: list[str] = []
    if types == STRING:
        calls.add('"')
        mark = yield from text_up_to(
            source, marks, lambda text: calls.add(escaped_text(text)), lambda: True
        )
    else:
        mark = yield from text_up_to(source, marks, parts.append)
    if mark is None:
        return False
    source.at += len(mark)
    calls.add('"' if types == STRING else value_as_json("".join(parts), types))
    return True


def _raw_value(
    source: IncrementalText, tags: ParameterTags, calls: CallRecorder
) -> Generator[None, None, bool]:
    """Read a string between marks of its own, and the tag that closes the argument."""
    calls.add('"')
    marks = Marks({tags.raw_close})
    mark = yield from text_up_to(
        source, marks, lambda text: calls.add(escaped_text(text)), lambda: True
    )
    if mark is None:
        return False
    source.at += len(mark)
    calls.add('"')
    return (yield from source.take_all(tags.close.split()))


@cache
def _closing_marks(tags: ParameterTags) -> Marks:
    """Return the closing tag, with and without the line break that the family writes before it."""
    return Marks({tags.close.strip(), tags.close.rstrip()})
