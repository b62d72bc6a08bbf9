"""Calls in an answer, from the mark that opens them to the one that closes them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_format import CallFormat, CallSyntax
from tokenbus.engine.chat.reading.braced_call import braced_call
from tokenbus.engine.chat.reading.json_call import json_arguments, json_call
from tokenbus.engine.chat.reading.parameter_call import parameter_call
from tokenbus.engine.chat.reading.python_call import python_call

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from tokenbus.engine.chat.reading.call_recorder import CallRecorder
    from tokenbus.engine.chat.reading.incremental_text import IncrementalText

_BODIES = {
    CallSyntax.JSON_CALL: json_call,
    CallSyntax.JSON_ARGUMENTS: json_arguments,
    CallSyntax.PARAMETERS: parameter_call,
    CallSyntax.PYTHON: python_call,
    CallSyntax.BRACED: braced_call,
}
_BRACKETS = re.compile(r"[\s\[]*")


def all_formats(written: CallFormat | None) -> tuple[CallFormat, ...]:
    """Return a format, if there is one, and what is read besides."""
    return (written, *written.also_read) if written else ()


class CallSection:
    """Reads the calls behind a mark that has just been read.

    openings: by the first part of their opening mark, the formats that begin so.
    """

    def __init__(
        self, source: IncrementalText, calls: CallRecorder, formats: Sequence[CallFormat]
    ) -> None:
        self._source = source
        self._calls = calls
        # Whether the last section lacks a mark that closes it, which may still come.
        self.expects_closing = False
        self.bare = tuple(each for each in formats if each.is_bare)
        self.openings: dict[str, list[tuple[CallFormat, bool]]] = {}
        for each in formats:
            for opening, is_section in ((each.section_open, True), (each.call_open, False)):
                if opening:
                    ways = self.openings.setdefault(opening.split()[0], [])
                    ways.append((each, is_section))
        self.closings = {
            part
            for each in formats
            for closing in (each.section_close, each.call_close)
            for part in closing.split()
        } - self.openings.keys()

    def read(self, mark: str) -> Generator[None, None, bool]:
        """Read the calls behind a mark; False if what follows the last good one is no call."""
        ways = self.openings[mark]
        written, is_section = ways[0]
        opening = written.section_open if is_section else written.call_open
        if not (yield from self._source.take_all(opening.split()[1:])):
            return False
        if len(ways) > 1:
            written, is_section = yield from self._fitting(ways)
        return (yield from self._calls_of(written, is_open=not is_section))

    def read_bare(self) -> Generator[None, None, bool | None]:
        """Read calls without a mark; None if nothing that comes next looks like one."""
        begins = yield from self._source.skip_space()
        if begins not in {"{", "["} or not self.bare:
            return None
        ways = [(each, False) for each in self.bare]
        written, _ = yield from self._fitting(ways)
        if written.syntax is CallSyntax.PYTHON and begins != "[":
            return None
        return (yield from self._calls_of(written, is_open=True))

    def _fitting(
        self, ways: Sequence[tuple[CallFormat, bool]]
    ) -> Generator[None, None, tuple[CallFormat, bool]]:
        """Return the format whose calls begin as the text goes on, brackets aside."""
        source = self._source
        while (end := source.run_end(_BRACKETS)) == len(source.text):
            if not (yield from source.more()):
                return ways[0]
        is_json = source.text[end] == "{"
        fitting = (way for way in ways if (way[0].syntax is CallSyntax.JSON_CALL) == is_json)
        return next(fitting, ways[0])

    def _calls_of(self, written: CallFormat, *, is_open: bool) -> Generator[None, None, bool]:
        """Read calls up to the end of their section, and what closes it."""
        source = self._source
        has_bracket = False
        if written.syntax in {CallSyntax.JSON_CALL, CallSyntax.PYTHON}:
            yield from source.skip_space()
            has_bracket = yield from source.take("[")
        is_empty, self.expects_closing = True, False
        while (yield from self._opens(written, is_open=is_open)):
            if not (yield from _BODIES[written.syntax](source, written, self._calls)):
                self.expects_closing = not is_empty
                return False
            is_empty, is_open = False, not written.call_open
            is_closed = yield from self._close(written.call_close)
            source.begin_attempt()
            if not (yield from self._separates(written, has_bracket=has_bracket)):
                break
            source.begin_attempt()
        is_closed = not is_empty and is_closed
        if has_bracket:
            yield from self._close("]")
        if written.section_close:
            is_closed = yield from self._close(written.section_close)
        self.expects_closing = not is_closed
        if source.ran_out and not is_empty:
            # What is left is the beginning of a mark.
            source.at = len(source.text)
        return is_closed or not is_empty

    def _opens(self, written: CallFormat, *, is_open: bool) -> Generator[None, None, bool]:
        """Read what opens a call; False if none follows."""
        char = yield from self._source.skip_space()
        if not is_open and written.call_open:
            return (yield from self._source.take_all(written.call_open.split()))
        return bool(char) and char != "]" and not written.section_close.lstrip().startswith(char)

    def _separates(self, written: CallFormat, *, has_bracket: bool) -> Generator[None, None, bool]:
        """Read what stands between calls; False if no call can follow."""
        char = yield from self._source.skip_space()
        separator = "," if has_bracket else written.separator.strip()
        if separator:
            if not char or not separator.startswith(char):
                return False
            return (yield from self._source.take(separator))
        return bool(written.section_open)

    def _close(self, closing: str) -> Generator[None, None, bool]:
        """Read a closing mark; models leave parts of one out. Tell whether its end was there."""
        source, is_closed = self._source, True
        for part in closing.split():
            yield from source.skip_space()
            is_closed = yield from source.take(part)
        return is_closed
