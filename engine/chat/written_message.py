"""Messages as a model has written them: content, reasoning and calls, taken apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class WrittenCall:
    """One call.

    arguments: JSON text of an object; of a call that is not complete the beginning of one.
    is_complete: the call was written to its end. What is not complete must not be carried out: the
        answer was cut in it, or it went on in another way than its format allows.
    """

    id: str
    name: str
    arguments: str
    is_complete: bool = True


@dataclass(frozen=True, slots=True)
class WrittenMessage:
    """A message taken apart; it equals the deltas of its reader joined, call by call."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[WrittenCall, ...] = ()

    @property
    def complete_calls(self) -> tuple[WrittenCall, ...]:
        """Return the calls that may be carried out."""
        return tuple(call for call in self.calls if call.is_complete)

    def dump(self) -> dict[str, Any]:
        """Return the message as chat APIs spell it, ready for the history of the next request."""
        calls = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in self.complete_calls
        ]
        content = self.content if self.content or not calls else None
        wire: dict[str, Any] = {"role": "assistant", "content": content}
        if self.reasoning:
            wire["reasoning_content"] = self.reasoning
        if calls:
            wire["tool_calls"] = calls
        return wire
