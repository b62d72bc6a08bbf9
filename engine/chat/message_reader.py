"""The reader of an answer: from its text, as it grows, to typed deltas of its message."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.reading.call_recorder import CallRecorder
from tokenbus.engine.chat.reading.channel_answer import ChannelAnswer
from tokenbus.engine.chat.reading.growing_message import GrowingMessage
from tokenbus.engine.chat.reading.incremental_text import IncrementalText
from tokenbus.engine.chat.reading.tagged_answer import TaggedAnswer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.chat.delta import MessageDelta
    from tokenbus.engine.chat.written_message import WrittenMessage


class MessageReader:
    """Takes one answer apart while it is written: content, reasoning and calls.

    The deltas joined are the message, wherever the text was cut. Marks of the format are never
    part of it, nor is white space beside them, except what looks like a call and is none: unknown
    name, broken JSON. That is content as it was written, marks included.

    A call is told from the moment on when its name is known to be a tool's and its arguments begin.
    If it then breaks off, it stays in the message, not complete: where the answer ends in it, the
    rest of its text is dropped; where the answer goes on in another way, its text is content too.
    An answer that ends in a mark, or between a mark and the name of a call, drops these; so it does
    with the first characters of a mark, if they can have been meant as nothing else (`text_up_to`).
    """

    def __init__(
        self,
        chat_format: ChatFormat,
        tools: Mapping[str, Mapping[str, Any]],
        *,
        starts_in_reasoning: bool,
        call_id: Callable[[int], str],
    ) -> None:
        """Begin an answer.

        Args:
            tools: by name, the JSON schemas of the arguments; an empty one says nothing of types.
                Without tools no call is looked for. Formats that write values without quotes need
                the schemas to tell `"1"` from `1`; where a schema does not say, a value is JSON if
                it reads as JSON, else a string.
            starts_in_reasoning: the prompt ends inside a reasoning block.
            call_id: makes the id of a call from its index, for formats that keep none of their own.
        """
        self._growing = GrowingMessage()
        self._source = IncrementalText()
        calls = CallRecorder(self._growing, tools, call_id)
        answer: TaggedAnswer | ChannelAnswer
        if chat_format.has_channels:
            answer = ChannelAnswer(self._source, self._growing, calls)
        else:
            answer = TaggedAnswer(
                self._source, self._growing, calls, chat_format, reads_calls=bool(tools)
            )
        self._steps = answer.read(starts_in_reasoning=starts_in_reasoning)
        self._advance()

    def push(self, text: str) -> MessageDelta:
        """Read what has come; what may be the beginning of a mark waits for the next piece."""
        self._source.add(text)
        self._advance()
        return self._growing.take_delta()

    def finish(self) -> MessageDelta:
        """Read what waited: the answer has ended, or was cut."""
        self._source.has_ended = True
        self._advance()
        return self._growing.take_delta()

    @property
    def message(self) -> WrittenMessage:
        """Return what has been read so far; it equals the deltas joined."""
        return self._growing.message()

    def _advance(self) -> None:
        with suppress(StopIteration):
            next(self._steps)
        self._source.hand_on()
