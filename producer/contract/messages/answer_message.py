"""The message of an answer, and how chat APIs spell it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tokenbus.engine.chat.written_message import WrittenCall, WrittenMessage


@dataclass(frozen=True, slots=True)
class AnswerMessage(WrittenMessage):
    """What one choice says: content, reasoning and calls; it equals its deltas joined.

    `calls` may end with one that the end of the answer has cut; `tool_calls` are whole.
    """

    @classmethod
    def of(cls, written: WrittenMessage) -> AnswerMessage:
        """Take what a reader has read."""
        return cls(written.content, written.reasoning, written.calls)

    @property
    def tool_calls(self) -> tuple[WrittenCall, ...]:
        """Return the calls that may be carried out."""
        return self.complete_calls

    def dump(self) -> dict[str, Any]:
        """Return the message as chat APIs spell it, ready for the history of the next request."""
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in self.tool_calls
        ]
        content = self.content if self.content or not calls else None
        wire: dict[str, Any] = {"role": "assistant", "content": content}
        if self.reasoning:
            wire["reasoning_content"] = self.reasoning
        if calls:
            wire["tool_calls"] = calls
        return wire
