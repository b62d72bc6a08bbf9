"""The message of an answer while it is read: what is new of it, and all of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenbus.engine.chat.delta import CallDelta, MessageDelta
from tokenbus.engine.chat.written_message import WrittenCall, WrittenMessage


class GrowingText:
    """A text that is read in pieces, without the white space beside marks.

    White space at its end waits until it is known what follows: more text, a mark, or nothing.
    """

    __slots__ = ("_new", "_parts", "_space", "is_bordered")

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._new: list[str] = []
        self._space = ""
        # Whether the last thing read is a mark, white space aside.
        self.is_bordered = False

    def add(self, text: str) -> None:
        """Add what comes next."""
        if not text:
            return
        words = text.rstrip()
        if not words:
            self._space += text
            return
        if self.is_bordered and not self:
            self._space, words, text = "", words.lstrip(), text.lstrip()
        self._new.append(self._space + words)
        self._space = text[len(words) :]
        self.is_bordered = False

    def border(self) -> None:
        """Say that a mark stands here: white space beside it counts only between two texts."""
        self.is_bordered = True

    def end(self) -> None:
        """Say that nothing follows."""
        if not self.is_bordered:
            self._new.append(self._space)
        self._space = ""

    def take_new(self) -> str:
        """Return what was added since the last time."""
        if not self._new:
            return ""
        new = "".join(self._new)
        self._new.clear()
        self._parts.append(new)
        return new

    def __bool__(self) -> bool:
        """Tell whether anything but white space has been added."""
        return bool(self._parts or self._new)

    def __str__(self) -> str:
        """Return all that was taken."""
        return "".join(self._parts)


@dataclass(slots=True)
class _GrowingCall:
    """A call of which name and beginning are known."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)
    is_complete: bool = False


class GrowingMessage:
    """What has been read of a message."""

    __slots__ = ("_calls", "_new_calls", "content", "reasoning")

    def __init__(self) -> None:
        self.content = GrowingText()
        self.reasoning = GrowingText()
        self._calls: list[_GrowingCall] = []
        self._new_calls: dict[int, tuple[bool, list[str]]] = {}

    @property
    def num_calls(self) -> int:
        """Return how many calls have begun."""
        return len(self._calls)

    def open_call(self, call_id: str, name: str) -> None:
        """Begin a call."""
        self._new_calls[len(self._calls)] = (True, [])
        self._calls.append(_GrowingCall(call_id, name))

    def add_arguments(self, text: str) -> None:
        """Add to the arguments of the last call."""
        index = len(self._calls) - 1
        self._calls[index].arguments.append(text)
        self._new_calls.setdefault(index, (False, []))[1].append(text)

    def complete_call(self) -> None:
        """Say that the last call is complete."""
        self._calls[-1].is_complete = True

    def take_delta(self) -> MessageDelta:
        """Return what is new."""
        calls = tuple(self._take_call(*each) for each in self._new_calls.items())
        self._new_calls.clear()
        return MessageDelta(self.content.take_new(), self.reasoning.take_new(), calls)

    def _take_call(self, index: int, new: tuple[bool, list[str]]) -> CallDelta:
        begins, arguments = new
        call = self._calls[index]
        text = "".join(arguments)
        return (
            CallDelta(index, call.id, call.name, text) if begins else CallDelta(index, "", "", text)
        )

    def message(self) -> WrittenMessage:
        """Return all that was taken as deltas."""
        calls = (
            WrittenCall(each.id, each.name, "".join(each.arguments), each.is_complete)
            for each in self._calls
        )
        return WrittenMessage(str(self.content), str(self.reasoning), tuple(calls))
