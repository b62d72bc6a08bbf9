"""The message of an answer, as results and streams have it."""

from __future__ import annotations

from dataclasses import dataclass

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
