"""Deltas: what a piece of an answer adds to its message."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What is new of one call.

    index: place of the call in its message, from 0.
    id, name: in the first delta of a call, empty in those that follow.
    arguments: a piece of the JSON text of the arguments; may be empty.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class MessageDelta:
    """What is new of a message; `calls` has each call once, in order of their indices."""

    content: str = ""
    reasoning: str = ""
    calls: tuple[CallDelta, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether anything is new."""
        return bool(self.content or self.reasoning or self.calls)
