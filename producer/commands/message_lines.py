"""Messages for a person: content as it comes, reasoning apart from it, a line for each call."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from tokenbus.producer.terminal import has_colours, say, visible

if TYPE_CHECKING:
    from tokenbus.engine.chat.delta import CallDelta, MessageDelta
    from tokenbus.producer.contract.events import Event

_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


class MessageLines:
    """Prints a job's events: content and calls to standard output, reasoning to standard error.

    A call is a line `name(arguments)`, printed when the next part begins; one that the end of the
    answer has cut ends in an ellipsis. Jobs whose answers are no messages are their text.
    `is_safe`: nothing of it has to be escaped.
    """

    def __init__(self, *, is_safe: bool) -> None:
        self._is_safe = is_safe
        self._is_dim = has_colours(sys.stderr)
        # Open calls by choice and index: name and argument text.
        self._calls: dict[tuple[int, int], tuple[str, str]] = {}
        self._is_thinking = False
        self._has_line = False

    def print(self, event: Event) -> None:
        """Print what an event adds; with the terminal one all that is left."""
        for choice, delta in event.deltas:
            self._print_delta(choice, delta)
        if event.finish is not None:
            for call in self._calls.values():
                self._print_call(*call)
            self._end_thought()
            if self._has_line or event.told is None:
                print(flush=True)

    def _print_delta(self, choice: int, delta: MessageDelta) -> None:
        if delta.reasoning:
            shown = visible(delta.reasoning, lines=True)
            say(f"{_DIM}{shown}{_PLAIN}" if self._is_dim else shown, end="")
            self._is_thinking = True
        if delta.content:
            self._end_thought()
            self._print_calls_of(choice)
            self._say(delta.content)
        for call in delta.calls:
            self._end_thought()
            self._grow(choice, call)

    def _grow(self, choice: int, call: CallDelta) -> None:
        key = (choice, call.index)
        if key not in self._calls:
            self._print_calls_of(choice)
        name, arguments = self._calls.get(key, (call.name, ""))
        self._calls[key] = (name, arguments + call.arguments)

    def _print_calls_of(self, choice: int) -> None:
        """Print the calls of a choice that are over, because something else begins."""
        for key in [key for key in self._calls if key[0] == choice]:
            self._print_call(*self._calls.pop(key))

    def _print_call(self, name: str, arguments: str) -> None:
        if self._has_line:
            print(flush=True)
            self._has_line = False
        try:
            shown = json.dumps(json.loads(arguments), ensure_ascii=False)
        except ValueError:
            shown = f"{arguments} …"
        print(visible(f"{name}({shown})"), flush=True)

    def _say(self, text: str) -> None:
        shown = text if self._is_safe else visible(text, lines=True)
        print(shown, end="", flush=True)
        if shown:
            self._has_line = not shown.endswith("\n")

    def _end_thought(self) -> None:
        if self._is_thinking:
            say("")
            self._is_thinking = False
