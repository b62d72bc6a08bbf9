"""The tool reader finds the calls in the text of an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.chat.message_reader import MessageReader

if TYPE_CHECKING:
    from tokenbus.engine.chat.written_message import WrittenMessage


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
    """Knows the tools and how the model writes calls; plain values, so it can travel.

    format: the name of a chat format.
    schemas: of the arguments, by the name of the tool.
    hidden_mark: opens the calls and is a special token, so it is not in the text of an output.
    """

    format: str
    schemas: dict[str, dict[str, Any]]
    hidden_mark: str = ""

    def parse(self, text: str) -> ToolOutput:
        """Take an output apart; text that holds no complete calls is content as a whole."""
        message = self._read(text)
        if not message.complete_calls and self.hidden_mark:
            message = self._read(self.hidden_mark + text)
        calls = tuple(WrittenToolCall(call.name, call.arguments) for call in message.complete_calls)
        return ToolOutput(message.content if calls else text, calls)

    def _read(self, text: str) -> WrittenMessage:
        reader = MessageReader(
            format_named(self.format), self.schemas, starts_in_reasoning=False, call_id=str
        )
        reader.push(text)
        reader.finish()
        return reader.message
