"""Requests without a stream: they wait for their jobs as long as somebody waits for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.gateway.wire.refusals import api_error, unreachable

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from starlette.requests import Request

    from tokenbus.producer.gateway.jobs.open_streams import OpenStream, OpenStreams

T = TypeVar("T")


async def attended(
    work: Coroutine[Any, Any, T],
    request: Request,
    stream: OpenStream,
    streams: OpenStreams,
    *,
    timeout_s: float,
) -> T:
    """Return what comes of some work, while its reader is there and the door is open.

    Raises: ApiError: of the work, of the door, 408 after so many seconds. A reader that has left
        gets 499, which nobody reads, and the jobs are let go.
    """
    task = asyncio.create_task(work)
    gone = asyncio.ensure_future(_until_gone(request))
    is_left = True
    try:
        waits: set[asyncio.Future[Any]] = {task, gone, stream.stopped}
        await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            is_left = False
            return await _told(task, stream, streams)
        if stream.stopped.done():
            is_left = False
            raise stream.stopped.result()
        if gone.done():
            raise ApiError(499, "The client has left.", code="client_closed_request")
        raise ApiError(408, f"The answer took longer than {timeout_s:g} s.", code="timeout")
    except ProducerError as error:
        raise api_error(error) from None
    except SERVER_ERRORS:
        raise unreachable() from None
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
        streams.close(stream, is_left=is_left)


async def _told(task: asyncio.Task[T], stream: OpenStream, streams: OpenStreams) -> T:
    """Return what has come of the work; of a key that was revoked, the error that says so."""
    try:
        return task.result()
    except (ApiError, ProducerError) as error:
        told = error if isinstance(error, ApiError) else api_error(error)
        if told.code == "cancelled":
            await streams.check_key(stream)
        raise


async def _until_gone(request: Request) -> None:
    """Return when the reader has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
