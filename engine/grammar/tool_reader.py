"""The tool reader finds the calls in the text of an output."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tokenbus.engine.grammar.tool_format import ToolFormat  # noqa: TC001 - read at run time to decode

# What may stand between calls besides the format's own marks.
_GLUE = re.compile(r"[\s,;\[\]]*")
_NAME_KEY = re.compile(r'\{\s*"name"\s*:\s*')


@dataclass(frozen=True, slots=True)
class WrittenToolCall:
    """One call; `arguments` is a JSON object as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """An output taken apart: the text before the calls, and the calls."""

    content: str
    calls: tuple[WrittenToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolReader:
    """Knows the tools by name and how the model writes calls; plain values, so it can travel.

    A marker that is a special token of the model is not in the text of an output.
    """

    format: ToolFormat
    names: tuple[str, ...]
    marker_is_special: bool

    def parse(self, text: str) -> ToolOutput:
        """Take an output apart; text that holds no complete calls is content as a whole.

        A marker that is a special token is not in the text; the first call is then looked for.
        """
        before, position = self._find_calls(text)
        calls: list[WrittenToolCall] = []
        while position is not None:
            position = self._skip_glue(text, position)
            if position == len(text):
                return ToolOutput(before, tuple(calls)) if calls else ToolOutput(text)
            position = self._read_call(text, position, calls)
        return ToolOutput(text)

    def _find_calls(self, text: str) -> tuple[str, int | None]:
        """Return the text before the calls and where they begin; None if there are none."""
        marker = self.format.marker
        if marker and marker in text:
            begins = text.index(marker)
            return text[:begins], begins
        if marker and not self.marker_is_special:
            return text, None
        found = _NAME_KEY.search(text)
        if found is None or (not marker and text[: found.start()].strip()):
            return text, None
        return text[: found.start()].removesuffix(self.format.opening), found.start()

    def _skip_glue(self, text: str, position: int) -> int:
        """Return where the next call begins, behind marks and separators."""
        marks = [mark for mark in (self.format.marker, self.format.closing.strip()) if mark]
        while True:
            mark = next((mark for mark in marks if text.startswith(mark, position)), "")
            glue = _GLUE.match(text, position + len(mark))
            ends = glue.end() if glue else position
            if ends == position:
                return position
            position = ends

    def _read_call(self, text: str, position: int, calls: list[WrittenToolCall]) -> int | None:
        """Append the call at `position`; return where it ends, None if there is none."""
        decoder = json.JSONDecoder()
        key = _NAME_KEY.match(text, position)
        if key is None:
            return None
        arguments_key = re.compile(rf'\s*,\s*"{self.format.arguments_key}"\s*:\s*')
        try:
            name, position = decoder.raw_decode(text, key.end())
            between = arguments_key.match(text, position)
            if between is None or not isinstance(name, str) or name not in self.names:
                return None
            arguments, ends = decoder.raw_decode(text, between.end())
        except (ValueError, RecursionError):
            return None
        closing = re.compile(r"\s*\}").match(text, ends)
        if closing is None or not isinstance(arguments, dict):
            return None
        calls.append(WrittenToolCall(name, text[between.end() : ends]))
        return closing.end()
