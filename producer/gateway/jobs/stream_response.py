"""The response of a stream: frames as they come, comments in between, and an end in any case."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.gateway.jobs.chunk_writer import ChunkWriter
from tokenbus.producer.gateway.wire import sse
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.gateway.wire.refusals import api_error, unreachable

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from tokenbus.producer.gateway.jobs.open_streams import OpenStream, OpenStreams

_log = logging.getLogger("tokenbus.gateway")


class FrameResponse(Response):
    """Sends the frames of an open stream; a reader that leaves is noticed at once.

    Args:
        frames: pieces of whole frames, the last one with its own end.
        last_frame: what ends the stream after an error of the door; `[DONE]` for OpenAI's chunks.
        on_writer: called before the first frame with what frames may be written to directly, where
            there is such a writer.
        on_end: called once the stream has ended for whatever reason, before it is closed.
    """

    media_type = sse.MEDIA_TYPE

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        stream: OpenStream,
        streams: OpenStreams,
        *,
        headers: Mapping[str, str] | None = None,
        last_frame: bytes = sse.DONE,
        error_frame: Callable[[ApiError], bytes] = sse.error_frame,
        on_writer: Callable[[ChunkWriter], None] | None = None,
        on_end: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__(headers=dict(sse.HEADERS) | dict(headers or {}))
        # A stream has no length.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._frames = frames
        self._stream = stream
        self._streams = streams
        self._last_frame = last_frame
        self._error_frame = error_frame
        self._on_writer = on_writer
        self._on_end = on_end
        self._writer: ChunkWriter | None = None
        self._written_at = 0.0
        self._has_failed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream to its end, or until its reader or the door ends it."""
        if self._on_writer is not None:
            self._writer = ChunkWriter.of(scope, self._streams.tick, self._note_write)
            if self._writer is not None:
                self._on_writer(self._writer)
        is_left = True
        self._begin()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            is_left = await self._send_all(receive, send)
            if not is_left:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            # The reader is gone.
            is_left = True
        finally:
            try:
                await self._frames.aclose()
                if self._on_end is not None:
                    await self._on_end()
            finally:
                self._note_end(is_left=is_left)
                self._streams.close(self._stream, is_left=is_left)

    def _begin(self) -> None:
        """Count a stream of a job that was not submitted for it."""
        if self._stream.jobs and self._stream.jobs[0].place is None:
            self._streams.metrics.resumed(self._stream.jobs[0].pool)

    def _note_write(self) -> None:
        """Count the time before what was just written; of a resumed stream only between writes."""
        stream, now = self._stream, time.monotonic()
        if stream.jobs:
            job = stream.jobs[0]
            if stream.has_begun:
                self._streams.metrics.went_on(job, now - self._written_at)
            elif job.place is not None:
                self._streams.metrics.began(job, now - job.asked_at)
        stream.has_begun = True
        stream.sent_at = self._written_at = now

    def _note_end(self, *, is_left: bool) -> None:
        if not self._stream.jobs:
            return
        job = self._stream.jobs[0]
        outcome = "left" if is_left else "error" if self._has_failed else "done"
        is_whole = outcome == "done" and job.place is not None
        seconds = time.monotonic() - job.asked_at if is_whole else None
        self._streams.metrics.ended(job, outcome, seconds)

    async def _send_all(self, receive: Receive, send: Send) -> bool:
        """Send frames and asides; tell whether the reader left before the end."""
        stream = self._stream
        stream.is_sending, stream.sent_at = True, time.monotonic()
        writing = asyncio.create_task(self._write_all(send))
        gone = asyncio.create_task(_until_gone(receive))
        aside = asyncio.create_task(stream.asides.get())
        try:
            while True:
                waits: set[asyncio.Future[Any]] = {writing, gone, aside, stream.stopped}
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if writing.done():
                    writing.result()
                    return False
                if gone.done():
                    return True
                if stream.stopped.done():
                    writing.cancel()
                    await asyncio.gather(writing, return_exceptions=True)
                    await self._fail(send, stream.stopped.result())
                    return False
                await self._send(send, aside.result())
                stream.sent_at = time.monotonic()
                aside = asyncio.create_task(stream.asides.get())
        finally:
            for task in (writing, gone, aside):
                task.cancel()
            await asyncio.gather(writing, gone, aside, return_exceptions=True)

    async def _write_all(self, send: Send) -> None:
        """Send the frames as they come; an error becomes the last frame."""
        try:
            async with aclosing(self._frames) as frames:
                async for part in frames:
                    await self._send(send, part)
                    self._note_write()
        except ApiError as error:
            await self._fail(send, error)
        except ProducerError as error:
            await self._fail(send, api_error(error))
        except SERVER_ERRORS as error:
            if isinstance(error, ConnectionResetError | BrokenPipeError):
                raise
            await self._fail(send, unreachable())
        except Exception:
            # The boundary of a stream: what is wrong with one ends that one alone, in order.
            _log.exception("stream.failed")
            await self._fail(send, ApiError(500, "The gateway failed.", code="internal_error"))

    async def _fail(self, send: Send, error: ApiError) -> None:
        """End the stream with an error."""
        self._has_failed = True
        await self._send(send, self._error_frame(error) + self._last_frame)

    async def _send(self, send: Send, part: bytes) -> None:
        """Send a piece behind what was written directly."""
        if self._writer is not None:
            self._writer.flush()
        await send({"type": "http.response.body", "body": part, "more_body": True})


async def _until_gone(receive: Receive) -> None:
    """Return when the reader has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
