"""Answers with marks in them: content, with blocks of reasoning and of calls."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenbus.engine.chat.reading.call_section import CallSection, all_formats
from tokenbus.engine.chat.reading.marks import Marks, text_up_to

if TYPE_CHECKING:
    from collections.abc import Generator

    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.chat.reading.call_recorder import CallRecorder
    from tokenbus.engine.chat.reading.growing_message import GrowingMessage
    from tokenbus.engine.chat.reading.incremental_text import IncrementalText

_SPACE = re.compile(r"\s*")
_BARE_BEGINNINGS = frozenset({"{", "["})


class TaggedAnswer:
    """Reads one answer; `read` is a generator that waits for text."""

    def __init__(
        self,
        source: IncrementalText,
        growing: GrowingMessage,
        calls: CallRecorder,
        chat_format: ChatFormat,
        *,
        reads_calls: bool,
    ) -> None:
        self._source = source
        self._content = growing.content
        self._thought = growing.reasoning
        self._calls = calls
        self._written = chat_format.calls if reads_calls else None
        self._section = CallSection(source, calls, all_formats(self._written))
        reasoning = chat_format.reasoning
        self._opens = frozenset(reasoning.opens if reasoning else ())
        self._closes = frozenset(reasoning.closes if reasoning else ())
        self._frame = frozenset(chat_format.frame)
        calls_open = frozenset(self._section.openings)
        self._ends_thought = self._closes | (
            calls_open if reasoning and reasoning.is_closed_by_calls else frozenset()
        )
        self._thought_marks = Marks(self._ends_thought)
        self._marks = Marks(
            self._opens | self._closes | self._frame | calls_open | self._section.closings
        )

    def read(self, *, starts_in_reasoning: bool) -> Generator[None, None, None]:
        """Read the answer to its end."""
        if starts_in_reasoning and self._closes:
            yield from self._think()
        if self._written and self._written.opens_in_prompt:
            yield from self._behind(self._written.call_open, is_marked=False)
        while (yield from self._go_on()):
            pass
        if self._source.has_dropped_mark:
            self._content.border()
            self._thought.border()
        self._content.end()
        self._thought.end()

    def _think(self) -> Generator[None, None, None]:
        """Read a thought, behind the mark that opens it."""
        self._thought.border()
        mark = yield from text_up_to(self._source, self._thought_marks, self._thought.add)
        if mark is None:
            return
        if mark in self._closes:
            self._source.at += len(mark)
        self._thought.border()
        self._content.border()

    def _go_on(self) -> Generator[None, None, bool]:
        """Read content and what ends it; False at the end of the answer."""
        content, source = self._content, self._source
        if self._section.bare and self._is_at_beginning():
            content.add((yield from source.run(_SPACE)))
            if (yield from self._may_be_bare()) and (yield from self._bare()):
                return True
        mark = yield from text_up_to(
            # What begins a mark behind a call or a thought can only have been meant as one.
            source,
            self._marks,
            content.add,
            lambda: content.is_bordered,
        )
        if mark is None:
            return False
        if mark in self._section.openings:
            source.begin_attempt()
            source.at += len(mark)
            yield from self._behind(mark, is_marked=True)
        elif mark in self._opens and self._is_at_beginning():
            source.at += len(mark)
            content.border()
            yield from self._think()
        elif mark in self._closes or mark in self._frame or self._section.expects_closing:
            source.at += len(mark)
            content.border()
            self._section.expects_closing = False
        else:
            content.add(source.take_to(source.at + len(mark)))
        return True

    def _may_be_bare(self) -> Generator[None, None, bool]:
        """Tell whether a bracket comes next that does not begin a mark."""
        begins = yield from self._source.peek()
        if begins not in _BARE_BEGINNINGS:
            return False
        for mark in self._section.openings:
            if mark[0] == begins and (yield from self._source.comes(mark)):
                return False
        return True

    def _is_at_beginning(self) -> bool:
        return not self._content and not self._calls.num_complete

    def _bare(self) -> Generator[None, None, bool]:
        """Read calls that no mark opens; False if there is nothing that looks like one."""
        self._source.begin_attempt()
        is_read = yield from self._section.read_bare()
        if is_read is None:
            return False
        self._end_attempt(is_read=is_read, is_marked=False)
        return True

    def _behind(self, mark: str, *, is_marked: bool) -> Generator[None, None, None]:
        """Read calls behind the mark that opens them; `is_marked` if it stands in the answer."""
        if not is_marked:
            self._source.begin_attempt()
        is_read = yield from self._section.read(mark)
        self._end_attempt(is_read=is_read, is_marked=is_marked)

    def _end_attempt(self, *, is_read: bool, is_marked: bool) -> None:
        """Decide what becomes of text that was read as calls, from the last good one on."""
        source = self._source
        text = source.end_attempt()
        # A mark that is a word (`functools`) may be the last one of an answer.
        is_likely = self._calls.is_likely or (is_marked and not text.strip().isalpha())
        if is_read:
            self._content.border()
        elif source.ran_out and (is_likely or self._calls.num_complete):
            source.at = len(source.text)
            self._content.border()
        else:
            self._content.add(text)
        self._calls.leave()
