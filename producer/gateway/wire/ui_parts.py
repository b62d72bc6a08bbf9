"""Parts of a UI message: an answer as the stream protocol of the AI SDK's chat hooks tells it.

The protocol is version 1 of the UI message stream, which AI SDK 5 and later read: one JSON object a
frame, each of a type; text, reasoning and calls are begun, grown and ended by parts with one id.
Source: the schema of its chunks in the package `ai`, and its page on the stream protocol.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.events import FINISHED_REASONS, TOOL_CALLS

if TYPE_CHECKING:
    from tokenbus.engine.chat.delta import CallDelta, MessageDelta
    from tokenbus.producer.contract.events import Event, Finish

UI_HEADERS = {"x-vercel-ai-ui-message-stream": "v1"}
_CUT = "The call was cut by the end of the answer."
_EXPIRED = "The deadline of the answer passed."


class UiParts:
    """Turns the events of one job, from the first on, into the parts of one message.

    Of several choices the first is told. Each part is a JSON object.
    """

    def __init__(self, message_id: str) -> None:
        self._message_id = message_id
        # Kind and id of the open text or reasoning.
        self._open: tuple[str, str] | None = None
        self._num_opened = 0
        # Id, name and argument text of the call that grows, and its index in the message.
        self._call: tuple[str, str, str] | None = None
        self._call_index = -1

    def begin(self) -> list[dict[str, Any]]:
        """Return the parts before all others."""
        return [{"type": "start", "messageId": self._message_id}, {"type": "start-step"}]

    def read(self, event: Event) -> list[dict[str, Any]]:
        """Return what an event adds; with the terminal one, how the message ends."""
        parts: list[dict[str, Any]] = []
        for choice, delta in event.deltas:
            if choice == 0:
                parts += self._read_delta(delta)
        if event.finish is not None:
            parts += self._close_text() + self._close_call()
            parts += _ending(event.finish)
        return parts

    def _read_delta(self, delta: MessageDelta) -> list[dict[str, Any]]:
        parts = []
        if delta.reasoning:
            parts += self._grow_text("reasoning", delta.reasoning)
        if delta.content:
            parts += self._grow_text("text", delta.content)
        for call in delta.calls:
            parts += self._grow_call(call)
        return parts

    def _grow_text(self, kind: str, text: str) -> list[dict[str, Any]]:
        parts = self._close_call()
        if self._open is None or self._open[0] != kind:
            parts += self._close_text()
            self._open = (kind, f"{kind}-{self._num_opened}")
            self._num_opened += 1
            parts.append({"type": f"{kind}-start", "id": self._open[1]})
        return [*parts, {"type": f"{kind}-delta", "id": self._open[1], "delta": text}]

    def _close_text(self) -> list[dict[str, Any]]:
        if self._open is None:
            return []
        (kind, part_id), self._open = self._open, None
        return [{"type": f"{kind}-end", "id": part_id}]

    def _grow_call(self, call: CallDelta) -> list[dict[str, Any]]:
        parts = self._close_text()
        if self._call is None or call.index != self._call_index:
            parts += self._close_call()
            self._call, self._call_index = (call.id, call.name, ""), call.index
            start = {"type": "tool-input-start", "toolCallId": call.id, "toolName": call.name}
            parts.append(start)
        call_id, name, before = self._call
        self._call = (call_id, name, before + call.arguments)
        if call.arguments:
            piece = call.arguments
            parts.append(
                {"type": "tool-input-delta", "toolCallId": call_id, "inputTextDelta": piece}
            )
        return parts

    def _close_call(self) -> list[dict[str, Any]]:
        """Return the whole input of the call that has grown; one that was cut is an error."""
        if self._call is None:
            return []
        (call_id, name, arguments), self._call = self._call, None
        named = {"toolCallId": call_id, "toolName": name}
        try:
            return [{"type": "tool-input-available", **named, "input": json.loads(arguments)}]
        except ValueError:
            cut = {"type": "tool-input-error", **named, "input": arguments, "errorText": _CUT}
            return [cut]


def _ending(finish: Finish) -> list[dict[str, Any]]:
    if finish.reason in FINISHED_REASONS:
        reason = finish.finish_reason_of(0)
        told = "tool-calls" if reason == TOOL_CALLS else reason
        return [{"type": "finish-step"}, {"type": "finish", "finishReason": told}]
    if finish.reason == "cancelled":
        return [{"type": "finish-step"}, {"type": "abort"}]
    error = finish.error
    text = _EXPIRED if error is None else f"{error.code}: {error.message}"
    return [{"type": "error", "errorText": text}]
