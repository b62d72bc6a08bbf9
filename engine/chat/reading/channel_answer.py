"""Answers that are a row of messages, each with a header that says where it goes (harmony)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenbus.engine.chat.reading.json_text import json_value
from tokenbus.engine.chat.reading.marks import Marks, text_up_to

if TYPE_CHECKING:
    from collections.abc import Generator

    from tokenbus.engine.chat.reading.call_recorder import CallRecorder
    from tokenbus.engine.chat.reading.growing_message import GrowingMessage, GrowingText
    from tokenbus.engine.chat.reading.incremental_text import IncrementalText

_BEGINS = ("<|start|>", "<|channel|>")
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_BODY = "<|message|>"
_BETWEEN_MARKS = Marks((*_BEGINS, *_ENDS, _BODY))
_HEADER_MARKS = Marks((_BODY, *_ENDS))
_BODY_MARKS = Marks((*_BEGINS, *_ENDS))
_SPACE = re.compile(r"\s*")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_FUNCTIONS = "functions."
_THOUGHTS = "analysis"
# Between two messages that go to the same text.
_PARAGRAPH = "\n\n"


class ChannelAnswer:
    """Reads one answer; `read` is a generator that waits for text.

    Messages on the channel `analysis` are reasoning, those to a tool's function are calls, all
    others are content; so is text outside of messages.
    """

    def __init__(
        self, source: IncrementalText, growing: GrowingMessage, calls: CallRecorder
    ) -> None:
        self._source = source
        self._growing = growing
        self._calls = calls

    def read(self, *, starts_in_reasoning: bool) -> Generator[None, None, None]:
        """Read the answer to its end."""
        if starts_in_reasoning:
            yield from self._text(self._growing.reasoning)
        else:
            # A recipient may stand before the first mark: the prompt ends in the role.
            self._growing.content.add((yield from self._source.run(_SPACE)))
            if (yield from self._source.comes("to=")):
                self._growing.content.border()
                yield from self._message()
        while (yield from self._next()):
            yield from self._message()
        if self._source.has_dropped_mark:
            self._growing.content.border()
            self._growing.reasoning.border()
        self._growing.content.end()
        self._growing.reasoning.end()

    def _next(self) -> Generator[None, None, bool]:
        """Read up to the next header; False at the end of the answer."""
        content, source = self._growing.content, self._source
        while True:
            mark = yield from text_up_to(
                source, _BETWEEN_MARKS, content.add, lambda: content.is_bordered
            )
            if mark is None:
                return False
            content.border()
            if mark in _BEGINS:
                return True
            source.at += len(mark)

    def _message(self) -> Generator[None, None, None]:
        """Read a message with its header; one for nobody known is content as it was written."""
        source, growing = self._source, self._growing
        source.begin_attempt()
        parts: list[str] = []
        mark = yield from text_up_to(source, _HEADER_MARKS, parts.append)
        header = "".join(parts)
        if mark is None:
            source.end_attempt()
            return
        source.at += len(mark)
        recipient = _RECIPIENT.search(header)
        channel = _CHANNEL.search(header)
        if mark != _BODY:
            source.end_attempt()
        elif recipient:
            yield from self._call(recipient[1].removeprefix(_FUNCTIONS))
        else:
            source.end_attempt()
            is_thought = channel is not None and channel[1] == _THOUGHTS
            yield from self._text(growing.reasoning if is_thought else growing.content)

    def _text(self, text: GrowingText) -> Generator[None, None, None]:
        text.border()
        text.add(_PARAGRAPH)
        mark = yield from text_up_to(self._source, _BODY_MARKS, text.add)
        if mark is not None:
            text.border()
            self._end(mark)

    def _end(self, mark: str) -> None:
        if mark in _ENDS:
            self._source.at += len(mark)

    def _call(self, name: str) -> Generator[None, None, None]:
        """Read the arguments of a call, and what ends its message."""
        source, content = self._source, self._growing.content
        is_whole = False
        if self._calls.knows(name) and (yield from source.skip_space()) == "{":
            self._calls.open(name)
            source.begin_copy(self._calls.add)
            is_whole = yield from json_value(source)
            source.end_copy()
        text = source.end_attempt()
        if is_whole:
            self._calls.complete()
        elif source.ran_out:
            source.at = len(source.text)
        else:
            content.add(text)
        self._calls.leave()
        mark = yield from text_up_to(
            source, _BODY_MARKS, content.add, lambda: is_whole or content.is_bordered
        )
        if mark is not None:
            if not is_whole and mark in _ENDS:
                content.add(mark)
            else:
                content.border()
            self._end(mark)
