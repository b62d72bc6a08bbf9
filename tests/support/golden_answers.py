"""Golden answers: what models of a family write, typed by hand, with what it means.

A file of `tests/engine/chat/golden/` is named after a chat format. Each answer in it has a title,
the text as the model writes it, and what it is taken apart into. A part ends before the line break
in front of the next heading, so an empty line at its end is a line break that belongs to it.

    === title [in reasoning]
    the answer
    --- content
    --- reasoning
    --- call NAME ARGUMENTS
    --- cut call NAME BEGINNING
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.chat_format import ChatFormat, format_named
from tokenbus.engine.chat.message_reader import MessageReader

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.engine.chat.delta import MessageDelta

FOLDER = Path(__file__).resolve().parent.parent / "engine" / "chat" / "golden"
_HEADING = re.compile(r"^(===|---) (.*)$", re.MULTILINE)


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


_TEXT, _NUMBER = {"type": "string"}, {"type": "number"}
TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": _object(
        location=_TEXT, unit={"enum": ["celsius", "fahrenheit"]}, days={"type": "integer"}
    ),
    "send_email": _object(
        to={"type": "array", "items": _TEXT},
        subject=_TEXT,
        body=_TEXT,
        urgent={"type": "boolean"},
    ),
    "search": _object(query=_TEXT, filters={"type": "object"}, limit={"type": "integer"}),
    "get_time": _object(),
    "add_stop": _object(
        zip=_TEXT, price=_NUMBER, note={"anyOf": [{"type": "string"}, {"type": "null"}]}
    ),
}


@dataclass
class Golden:
    """One answer and its parts; arguments are in one spelling of JSON."""

    family: str
    title: str
    answer: str
    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str, bool]] = field(default_factory=list)

    @property
    def chat_format(self) -> ChatFormat:
        """Return the format it is written in."""
        return format_named(self.family)

    def reader(self) -> MessageReader:
        """Return a reader for it."""
        return MessageReader(
            self.chat_format,
            TOOLS,
            starts_in_reasoning=self.title.endswith("[in reasoning]"),
            call_id="call{}".format,
        )


def plain(arguments: str) -> str:
    """Return JSON in one spelling, numbers and booleans told apart."""
    return json.dumps(json.loads(arguments), ensure_ascii=False, sort_keys=True)


def joined(deltas: Iterable[MessageDelta]) -> tuple[str, str, list[tuple[str, str, str]]]:
    """Join deltas as a client does that knows no formats: id, name and arguments of each call."""
    content, reasoning = "", ""
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        content += delta.content
        reasoning += delta.reasoning
        for call in delta.calls:
            parts = calls.setdefault(call.index, ["", "", ""])
            parts[:] = [parts[0] + call.id, parts[1] + call.name, parts[2] + call.arguments]
    assert list(calls) == list(range(len(calls)))
    return content, reasoning, [(parts[0], parts[1], parts[2]) for parts in calls.values()]


def golden_answers() -> list[Golden]:
    """Read all golden answers."""
    return [each for path in sorted(FOLDER.glob("*.txt")) for each in _read(path)]


def _read(path: Path) -> list[Golden]:
    found: list[Golden] = []
    _, *parts = _HEADING.split(path.read_text(encoding="utf-8"))
    for kind, heading, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        text = body.removeprefix("\n").removesuffix("\n")
        name, _, rest = heading.partition(" ")
        if kind == "===":
            found.append(Golden(path.stem, heading, text))
        elif name == "content":
            found[-1].content = text
        elif name == "reasoning":
            found[-1].reasoning = text
        elif name == "call":
            tool, _, arguments = rest.partition(" ")
            found[-1].calls.append((tool, plain(arguments), True))
        else:
            tool, _, arguments = rest.removeprefix("call ").partition(" ")
            found[-1].calls.append((tool, arguments, False))
    return found
