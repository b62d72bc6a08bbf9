"""The recorder of calls: readers put them in, held against the tools that may be called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenbus.engine.chat.reading.growing_message import GrowingMessage


class CallRecorder:
    """Takes calls into a message; a call is opened once it is known to be one of a tool's."""

    __slots__ = ("_call_id", "_growing", "_tools", "is_likely", "is_open", "num_complete")

    def __init__(
        self,
        growing: GrowingMessage,
        tools: Mapping[str, Mapping[str, Any]],
        call_id: Callable[[int], str],
    ) -> None:
        self._growing = growing
        self._tools = tools
        self._call_id = call_id
        # Of the call that is being read: so much has been seen that it is hardly anything else.
        self.is_likely = False
        self.is_open = False
        self.num_complete = 0

    def knows(self, name: str) -> bool:
        """Tell whether a tool has that name."""
        return name in self._tools

    def is_beginning(self, name: str) -> bool:
        """Tell whether the name of a tool begins so."""
        return bool(name) and any(tool.startswith(name) for tool in self._tools)

    def schema(self, name: str) -> Mapping[str, Any]:
        """Return the schema of a tool's arguments; empty if none is known."""
        schema: object = self._tools.get(name)
        return schema if isinstance(schema, dict) else {}

    def open(self, name: str, written_id: str = "") -> None:
        """Begin a call of a tool."""
        self._growing.open_call(written_id or self._call_id(self._growing.num_calls), name)
        self.is_open = self.is_likely = True

    def add(self, arguments: str) -> None:
        """Add to the arguments of the open call."""
        self._growing.add_arguments(arguments)

    def complete(self) -> None:
        """End the open call, which has been written to its end."""
        self._growing.complete_call()
        self.num_complete += 1
        self.leave()

    def leave(self) -> None:
        """End the open call, if there is one, as it stands: not complete."""
        self.is_open = self.is_likely = False
