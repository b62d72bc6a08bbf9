"""Routes of chats in web pages: `/api/chat`, as the hooks of the AI SDK ask and read.

`useChat` posts all messages of a chat with its id, and on a reload asks for what is under way. The
answer goes on without a reader, and is told from its beginning to each that asks again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from tokenbus.producer.errors import JobUnknown
from tokenbus.producer.gateway.access.caller import Caller
from tokenbus.producer.gateway.answering import FIRST_EVENT_S, ignored_header, submit_all
from tokenbus.producer.gateway.body import object_of, read_body, read_object
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.jobs.awaited_answers import MAX_CHAT_ID, AwaitedAnswers
from tokenbus.producer.gateway.jobs.peeked_events import PeekedEvents
from tokenbus.producer.gateway.jobs.stream_response import FrameResponse
from tokenbus.producer.gateway.jobs.ui_frames import UiFrames, ui_error_frame
from tokenbus.producer.gateway.wire.api_description import ERROR_RESPONSES
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.gateway.wire.generation import asked_of
from tokenbus.producer.gateway.wire.refusals import of_finish
from tokenbus.producer.gateway.wire.ui_messages import chat_messages
from tokenbus.producer.gateway.wire.ui_parts import UI_HEADERS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenbus.producer.gateway.gateway import Gateway
    from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob
    from tokenbus.producer.gateway.wire.generation import GenerationAsked

_Who = Annotated[Caller, Depends(caller)]
# What the hooks say of the chat, in the body beside the fields of a request.
_OF_CHATS = frozenset({"id", "messages", "message", "trigger", "messageId", "system"})
_BODY = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["id", "messages"],
                "properties": {
                    "id": {"type": "string", "maxLength": MAX_CHAT_ID},
                    "messages": {"type": "array", "items": {"type": "object"}, "minItems": 1},
                    "system": {"type": "string"},
                    "model": {"type": "string"},
                },
                "additionalProperties": True,
            }
        }
    },
}


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["chats of web pages"], responses=ERROR_RESPONSES)

    @routes.post("/api/chat", response_class=Response, openapi_extra={"requestBody": _BODY})
    async def answer_chat(request: Request, who: _Who) -> Response:
        """Answer a chat as a UI message stream; an answer that it still waits for is cancelled."""
        return await _answer(gateway, request, who)

    @routes.get(
        "/api/chat/{chat_id:path}/stream",
        response_class=Response,
        responses={204: {"description": "The chat waits for no answer."}},
    )
    async def resume_chat(chat_id: str, who: _Who) -> Response:
        """Stream the answer that a chat waits for from its beginning; 204 where it waits for none.

        One that ended while nobody read it is told too.
        """
        return await _resumed(gateway, chat_id, who)

    @routes.post("/api/chat/{chat_id:path}/stop", response_class=JSONResponse)
    async def stop_chat(request: Request, chat_id: str, who: _Who) -> Response:
        """Cancel the answer that a chat waits for, that of `activeStreamId` where the body has one.

        Its readers keep what they have.
        """
        return await _stopped(gateway, request, chat_id, who)

    return routes


async def _answer(gateway: Gateway, request: Request, who: Caller) -> Response:
    body = await read_object(request, gateway.settings)
    chat_id = _chat_id(body.get("id"))
    asked, names = _asked(gateway, body, who)
    who = who.for_user(asked.user)
    served = await gateway.models.resolve(asked.model, who)
    prompt = {"messages": asked.fields.pop("messages")}
    [job] = await submit_all(gateway, request, who, asked, [prompt], served, [names])
    try:
        await _await_answer(gateway, who, chat_id, job)
        events = PeekedEvents(job, who, gateway.keys)
        finish = await events.failure(FIRST_EVENT_S)
        if finish is not None:
            await events.aclose()
            await AwaitedAnswers(gateway.redis, who).end(chat_id, job.job_id)
            raise of_finish(finish, names)
        headers = ignored_header(asked.ignored)
        return _stream(gateway, who, chat_id, job, events, headers)
    except BaseException:
        # Nobody was told of it.
        await gateway.streams.cancel([job])
        raise


def _asked(
    gateway: Gateway, body: Mapping[str, Any], who: Caller
) -> tuple[GenerationAsked, dict[str, str]]:
    """Take a body apart, and name its fields as errors have to. Raises: ApiError."""
    settings = gateway.settings
    messages = chat_messages(body.get("messages"))
    system = body.get("system")
    if system is not None and not isinstance(system, str):
        raise ApiError(400, "system: must be text", code="invalid_request", param="system")
    first = [{"role": "system", "content": system}] if system else []
    fields = {name: value for name, value in body.items() if name not in _OF_CHATS}
    fields["messages"] = [*first, *messages]
    asked = asked_of(fields, who.priorities, takes="messages", is_strict=settings.gateway_strict)
    if asked.fields.get("n") not in (None, 1):
        told = "n: a chat has one answer at a time"
        raise ApiError(400, told, code="invalid_request", param="n")
    names = {}
    if "max_completion_tokens" in asked.fields:
        names["max_tokens"] = "max_completion_tokens"
    elif "max_tokens" not in asked.fields:
        asked.default_tokens = settings.gateway_chat_tokens
        names["max_tokens"] = "messages"
    return asked, names


async def _await_answer(gateway: Gateway, who: Caller, chat_id: str, job: SubmittedJob) -> None:
    """Let the chat wait for a new job, and cancel what it waited for before."""
    awaited = AwaitedAnswers(gateway.redis, who)
    before = await awaited.begin(chat_id, job.job_id)
    for job_id in before:
        try:
            await gateway.streams.cancel([await gateway.door.find(who, job_id)])
        except ApiError:
            # Its pool is gone, or not this key's any more.
            continue
    await awaited.end(chat_id, *before)


async def _resumed(gateway: Gateway, chat_id: str, who: Caller) -> Response:
    awaited = AwaitedAnswers(gateway.redis, who)
    job_id = await awaited.current(_chat_id(chat_id))
    if job_id is None:
        return Response(status_code=204)
    job = await gateway.door.find(who, job_id)
    events = PeekedEvents(job, who, gateway.keys)
    try:
        # A job that is not known any more is told by its first event.
        await events.failure(FIRST_EVENT_S)
    except JobUnknown:
        await awaited.end(chat_id, job_id)
        return Response(status_code=204)
    return _stream(gateway, who, chat_id, job, events)


async def _stopped(gateway: Gateway, request: Request, chat_id: str, who: Caller) -> Response:
    told = await _stop_body(gateway, request)
    awaited = AwaitedAnswers(gateway.redis, who)
    job_id = await awaited.current(_chat_id(chat_id))
    if job_id is None or told not in (None, job_id, _message_id(job_id)):
        return JSONResponse({"success": True, "stopped": False})
    job = await gateway.door.find(who, job_id)
    try:
        is_stopped = await job.client.cancel(job.job_id, job.tenant)
    except JobUnknown:
        is_stopped = False
    await awaited.end(chat_id, job_id)
    return JSONResponse({"success": True, "stopped": is_stopped})


async def _stop_body(gateway: Gateway, request: Request) -> str | None:
    """Return the stream that is meant, where the request says so. Raises: ApiError."""
    body = await read_body(request, gateway.settings)
    if not body:
        return None
    given = object_of(body).get("activeStreamId")
    if given is not None and not isinstance(given, str):
        told = "activeStreamId: must be text"
        raise ApiError(400, told, code="invalid_request", param="activeStreamId")
    return given


def _stream(
    gateway: Gateway,
    who: Caller,
    chat_id: str,
    job: SubmittedJob,
    events: PeekedEvents,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return the response that tells an answer from its beginning. Raises: ApiError 503."""
    awaited = AwaitedAnswers(gateway.redis, who)

    async def told() -> None:
        await awaited.end(chat_id, job.job_id)

    frames = UiFrames(_message_id(job.job_id), events, told)

    async def end() -> None:
        await events.aclose()
        await gateway.door.refund_unused([job])

    stream = gateway.streams.open(who, [job], is_kept=True)
    if stream.jobs_ahead:
        stream.tell_position(stream.jobs_ahead)
    return FrameResponse(
        frames.frames(),
        stream,
        gateway.streams,
        headers=UI_HEADERS | {"X-Tokenbus-Job-Id": job.job_id} | dict(headers or {}),
        error_frame=ui_error_frame,
        on_end=end,
    )


def _message_id(job_id: str) -> str:
    """Return the id of the message that a job answers with."""
    return f"msg-{job_id}"


def _chat_id(given: object) -> str:
    """Check the id of a chat. Raises: ApiError 400."""
    if not isinstance(given, str) or not 1 <= len(given) <= MAX_CHAT_ID:
        told = f"id: must be text of 1 to {MAX_CHAT_ID} characters, the id of the chat"
        raise ApiError(400, told, code="invalid_request", param="id")
    return given
