"""Frames of a response: its events as they are sent, after a sequence number."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from tokenbus.producer.gateway.pools.vocabulary import alternatives_of
from tokenbus.producer.gateway.responses.response_events import ResponseEvents, ResponseToken
from tokenbus.producer.gateway.wire import sse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from tokenbus.producer.gateway.pools.vocabulary import Vocabulary
    from tokenbus.producer.gateway.responses.response_events import Step, Wire
    from tokenbus.producer.gateway.wire.api_error import ApiError
    from tokenbus.producer.stored.response_record import ResponseRecord


class ResponseFrames:
    """The frames of a response's events after a sequence number."""

    def __init__(
        self,
        record: ResponseRecord,
        steps: AsyncGenerator[Step, None],
        vocabulary: Vocabulary | None,
        after: int = -1,
    ) -> None:
        """Begin after a number; `vocabulary` tells the texts of alternatives, if there are any."""
        self._events = ResponseEvents(record)
        self._steps = steps
        self._vocabulary = vocabulary
        self._after = after
        self._number = after

    async def all(self) -> AsyncGenerator[bytes, None]:
        """Yield frames, those of one token together. Raises: what reading the job raises."""
        yield self._written(self._events.begin())
        async with aclosing(self._steps) as steps:
            async for step in steps:
                if self._vocabulary is not None and isinstance(step, ResponseToken) and step.entry:
                    ids = alternatives_of([step.entry])
                    self._events.texts = await self._vocabulary.texts(ids)
                part = self._written(self._events.take(step))
                if part:
                    yield part

    def error(self, error: ApiError) -> bytes:
        """Return the frame of an error of the door, which ends the stream."""
        told = {"code": error.code, "message": error.message, "param": error.param}
        number = self._number + 1
        return sse.json_frame({"type": "error", "sequence_number": number, **told}, event="error")

    def _written(self, events: Sequence[Wire]) -> bytes:
        frames = []
        for event in events:
            number = event["sequence_number"]
            if number > self._after:
                self._number = number
                frames.append(sse.json_frame(event, cursor=number, event=event["type"]))
        return b"".join(frames)
