"""The events of a response, derived token by token from its job.

One token is one step, however many came at once: so every process that reads the job's log, or its
result, makes the same events with the same sequence numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.delta import CallDelta, MessageDelta
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.gateway.responses.response_object import response_object, status_of
from tokenbus.producer.gateway.wire.logprob_forms import NO_TEXTS, chat_logprob
from tokenbus.producer.stored.derived_ids import item_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenbus.producer.stored.response_record import ResponseRecord

Wire = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ResponseToken:
    """What one token adds to the message.

    piece: text that it has released.
    entry: its logprobs in the form of events, where they were asked for.
    """

    delta: MessageDelta
    token_id: int
    piece: str
    entry: Any = None


# What a token adds to the message, what was held back until the end, or the end.
Step = ResponseToken | MessageDelta | Finish
# OpenAI has no terminal event of its own for a response that was cancelled.
_TERMINAL = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "cancelled": "response.incomplete",
    "failed": "response.failed",
}


@dataclass(slots=True)
class _OpenItem:
    """An output item while it grows: `message`, `reasoning`, or a call with its index."""

    kind: str
    index: int
    item: Wire
    call_index: int = -1
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Wire] = field(default_factory=list)


class ResponseEvents:
    """Makes the events of one response, in order, from what its job tells.

    `texts` are those of alternatives, by their ids.
    """

    def __init__(self, record: ResponseRecord, texts: Mapping[int, str] = NO_TEXTS) -> None:
        self.texts = texts
        self._record = record
        self._with_logprobs = record.with_logprobs
        # Of tokens whose text has not come yet.
        self._logprobs: list[Wire] = []
        self._number = 0
        self._output: list[Wire] = []
        self._open: _OpenItem | None = None
        self._status = "queued" if record.background else "in_progress"
        self._finish: Finish | None = None
        self.has_started = False

    @property
    def response(self) -> Wire:
        """Return the response object as it stands."""
        return response_object(self._record, self._status, self._output, self._finish)

    def begin(self) -> list[Wire]:
        """Return what is told before the job is looked at."""
        events = [self._state("response.created")]
        if self._record.background:
            events.append(self._state("response.queued"))
        return events

    def take(self, step: Step) -> list[Wire]:
        """Return the events of a step."""
        if isinstance(step, Finish):
            return self.finish(step)
        if isinstance(step, MessageDelta):
            return self.add(step)
        if self._with_logprobs:
            told = chat_logprob(step.entry, step.token_id, step.piece, self.texts)
            self._logprobs.append(told)
        return self.add(step.delta) if step.delta else []

    def add(self, delta: MessageDelta) -> list[Wire]:
        """Return the events of what one token adds; none where it adds nothing."""
        events = self._started()
        if not delta.content:
            # They were those of reasoning or calls.
            self._logprobs = []
        if delta.reasoning:
            events += self._text("reasoning", delta.reasoning)
        if delta.content:
            events += self._text("message", delta.content)
        for call in delta.calls:
            events += self._call(call)
        return events

    def finish(self, finish: Finish) -> list[Wire]:
        """Return the events of the end, the terminal one last."""
        events = self._started()
        status = status_of(finish)
        if status == "completed" and not self._output:
            events += self._text("message", "")
        events += self._close("completed" if status == "completed" else "incomplete")
        self._status, self._finish = status, finish
        events.append(self._state(_TERMINAL[status]))
        return events

    def _started(self) -> list[Wire]:
        if self.has_started:
            return []
        self.has_started = True
        self._status = "in_progress"
        return [self._state("response.in_progress")]

    def _state(self, name: str) -> Wire:
        return self._event(name, response=self.response)

    def _event(self, kind: str, /, **fields: Any) -> Wire:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **fields}

    def _text(self, kind: str, piece: str) -> list[Wire]:
        """Add a piece of text to the item of its kind that is open, or to a new one."""
        events: list[Wire] = []
        if self._open is None or self._open.kind != kind:
            events += self._close("completed")
            events += self._begin_text(kind)
        opened = self._opened
        opened.pieces.append(piece)
        if not piece:
            return events
        is_message = kind == "message"
        name = "response.output_text.delta" if is_message else "response.reasoning_text.delta"
        more: Wire = {}
        if is_message:
            more["logprobs"], self._logprobs = self._logprobs, []
            opened.logprobs += more["logprobs"]
        events.append(self._event(name, **self._place(opened), delta=piece, **more))
        return events

    def _begin_text(self, kind: str) -> list[Wire]:
        item: Wire = {"type": kind, "status": "in_progress", "content": []}
        if kind == "message":
            item = {"id": self._id("msg"), **item, "role": "assistant"}
        else:
            item = {"id": self._id("rs"), **item, "summary": []}
        events = [self._added(_OpenItem(kind, len(self._output), item))]
        part = _part(kind, "", [])
        place = self._place(self._opened)
        events.append(self._event("response.content_part.added", **place, part=part))
        return events

    def _call(self, call: CallDelta) -> list[Wire]:
        events: list[Wire] = []
        opened = self._open
        if opened is None or opened.kind != "function_call" or opened.call_index != call.index:
            events += self._close("completed")
            item = {
                "id": self._id("fc"),
                "type": "function_call",
                "status": "in_progress",
                "call_id": call.id,
                "name": call.name,
                "arguments": "",
            }
            opened = _OpenItem("function_call", len(self._output), item, call.index)
            events.append(self._added(opened))
        if call.arguments:
            opened.pieces.append(call.arguments)
            events.append(
                self._event(
                    "response.function_call_arguments.delta",
                    item_id=opened.item["id"],
                    output_index=opened.index,
                    delta=call.arguments,
                )
            )
        return events

    def _added(self, opened: _OpenItem) -> Wire:
        self._open = opened
        item = opened.item
        self._output.append(item)
        # The event keeps the item as it was when it began.
        told = item | ({"content": []} if "content" in item else {})
        name = "response.output_item.added"
        return self._event(name, output_index=opened.index, item=told)

    def _close(self, status: str) -> list[Wire]:
        """End the open item; what follows it is another."""
        opened, self._open = self._open, None
        if opened is None:
            return []
        item, text = opened.item, "".join(opened.pieces)
        # An earlier event holds the item as it was.
        item = self._output[opened.index] = item | {"status": status}
        events: list[Wire] = []
        if opened.kind == "function_call":
            item["arguments"] = text
            place = {"item_id": item["id"], "output_index": opened.index, "name": item["name"]}
            name = "response.function_call_arguments.done"
            events.append(self._event(name, **place, arguments=text))
        else:
            is_message = opened.kind == "message"
            part = _part(opened.kind, text, opened.logprobs)
            item["content"] = [part]
            place = self._place(opened)
            more: Wire = {"logprobs": opened.logprobs} if is_message else {}
            name = "response.output_text.done" if is_message else "response.reasoning_text.done"
            events.append(self._event(name, **place, text=text, **more))
            events.append(self._event("response.content_part.done", **place, part=part))
        done = {"output_index": opened.index, "item": item}
        events.append(self._event("response.output_item.done", **done))
        return events

    @property
    def _opened(self) -> _OpenItem:
        assert self._open is not None, "no item is open"
        return self._open

    def _place(self, opened: _OpenItem) -> Wire:
        return {"item_id": opened.item["id"], "output_index": opened.index, "content_index": 0}

    def _id(self, prefix: str) -> str:
        return item_id(prefix, self._record.id, len(self._output))


def _part(kind: str, text: str, logprobs: list[Wire]) -> Wire:
    if kind == "message":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
    return {"type": "reasoning_text", "text": text}
