"""Frames of a UI message: an answer in the parts that the AI SDK's chat hooks read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.gateway.wire import sse
from tokenbus.producer.gateway.wire.ui_parts import UiParts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

    from tokenbus.producer.gateway.jobs.answer_frames import EventSource
    from tokenbus.producer.gateway.wire.api_error import ApiError


class UiFrames:
    """Writes the frames of one message.

    `on_told` is called when a reader has been sent how the answer ended.
    """

    def __init__(
        self, message_id: str, events: EventSource, on_told: Callable[[], Awaitable[None]]
    ) -> None:
        self._parts = UiParts(message_id)
        self._events = events
        self._on_told = on_told

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield frames as they come, `[DONE]` last.

        Raises: ProducerError where the job cannot be read on.
        """
        yield _joined(self._parts.begin())
        async for event in self._events:
            frames = _joined(self._parts.read(event))
            if event.finish is not None:
                yield frames + sse.DONE
                await self._on_told()
                return
            if frames:
                yield frames


def ui_error_frame(error: ApiError) -> bytes:
    """Return the frame of an error that came after the stream had begun."""
    return _joined([{"type": "error", "errorText": error.message}])


def _joined(parts: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(sse.json_frame(part) for part in parts)
