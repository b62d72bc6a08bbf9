"""Answering: from a body that was taken apart to the response, as a stream or at once.

It is one file because it is one way: submitted, read, written, and given up when nobody waits.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.gateway.jobs.answer_frames import AnswerFrames
from tokenbus.producer.gateway.jobs.attended import attended
from tokenbus.producer.gateway.jobs.peeked_events import PeekedEvents
from tokenbus.producer.gateway.jobs.stream_form import (
    StreamForm,
    job_id_of,
    keep_form,
    kept_form,
    parse_cursor,
)
from tokenbus.producer.gateway.jobs.stream_response import FrameResponse
from tokenbus.producer.gateway.pools.prompt_tokens import check_told_prompts, told_prompts
from tokenbus.producer.gateway.pools.vocabulary import alternatives_of
from tokenbus.producer.gateway.request_headers import ticket_of, trace_of
from tokenbus.producer.gateway.wire.api_error import ApiError, not_found
from tokenbus.producer.gateway.wire.chat_answer import chat_answer
from tokenbus.producer.gateway.wire.completion_answer import completion_answer
from tokenbus.producer.gateway.wire.logprob_forms import NO_TEXTS
from tokenbus.producer.gateway.wire.refusals import api_error, of_finish, unreachable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from tokenbus.producer.contract.result import JobResult
    from tokenbus.producer.gateway.access.caller import Caller
    from tokenbus.producer.gateway.gateway import Gateway
    from tokenbus.producer.gateway.jobs.open_streams import OpenStream
    from tokenbus.producer.gateway.jobs.stream_form import Kind
    from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob
    from tokenbus.producer.gateway.pools.served_models import ServedPool
    from tokenbus.producer.gateway.wire.generation import GenerationAsked

# How long the first event is waited for before a stream begins: what fails at once has a status.
FIRST_EVENT_S = 1.0
LAST_EVENT_ID = "last-event-id"
# What a template adds to a conversation, and the shortest answer that is asked for unasked.
_TEMPLATE_TOKENS = 64
_LEAST_TOKENS = 64


async def answer(
    gateway: Gateway,
    request: Request,
    caller: Caller,
    asked: GenerationAsked,
    prompts: Sequence[Mapping[str, Any]],
    kind: Kind,
    names: Sequence[Mapping[str, str]],
) -> Response:
    """Submit the prompts of a request and answer it.

    Args:
        prompts: of each job the field that is its input.
        names: fields as the caller spelled them, for each prompt.
    Raises: ApiError.
    """
    resumed = await resumed_stream(gateway, request, caller, kind)
    if resumed is not None:
        return resumed
    check_told_prompts(asked)
    who = caller.for_user(asked.user)
    served = await gateway.models.resolve(asked.model, who)
    jobs = await submit_all(gateway, request, who, asked, prompts, served, names)
    form = _form_of(asked, served, jobs, kind, names)
    stream = gateway.streams.open(who, jobs)
    headers = _headers(asked.ignored, jobs)
    try:
        await keep_form(gateway.redis, form, gateway.result_ttl_s)
        if asked.is_streamed:
            after = _plain_cursor(request, jobs)
            return await _streamed(gateway, form, jobs, stream, headers, after)
    except BaseException:
        gateway.streams.close(stream, is_left=True)
        raise
    found = await _results(gateway, request, form, jobs, stream)
    told: dict[str, Any] = {
        "texts": await _texts(gateway, jobs, found),
        "prompts": await told_prompts(served.client, asked, prompts),
        "wire_id": form.wire_id,
        "created": form.created,
        "model": form.model,
        "tier": form.tier,
        "with_logprobs": form.with_logprobs,
    }
    body = chat_answer(found[0], **told) if kind == "chat" else completion_answer(found, **told)
    return JSONResponse(body, headers=dict(headers))


def _form_of(
    asked: GenerationAsked,
    served: ServedPool,
    jobs: Sequence[SubmittedJob],
    kind: Kind,
    names: Sequence[Mapping[str, str]],
) -> StreamForm:
    """Return how the answers of new jobs are told."""
    return StreamForm(
        kind=kind,
        jobs=tuple(job.job_id for job in jobs),
        created=jobs[0].created,
        model=served.name,
        n=asked.fields.get("n") or 1,
        with_usage=asked.with_usage,
        with_continuous_usage=asked.with_continuous_usage,
        with_logprobs=asked.with_logprobs,
        tier=asked.tier,
        names=tuple(dict(each) for each in names),
    )


async def resumed_stream(
    gateway: Gateway, request: Request, caller: Caller, kind: Kind | None = None
) -> Response | None:
    """Return the rest of the stream that the header Last-Event-ID names; None where it names none.

    What was asked for is never asked for anew.
    Raises: ApiError 404 for a stream that is not the caller's or not kept, 400 for a cursor that is
        none of it.
    """
    given = request.headers.get(LAST_EVENT_ID, "")
    job_id, colon, cursor = given.rpartition(":")
    if not colon:
        return None
    resumed = await stream_of(gateway, caller, job_id, cursor, kind)
    if resumed is None:
        raise not_found("stream", job_id)
    return resumed


async def stream_of(
    gateway: Gateway, caller: Caller, given: str, cursor: str, kind: Kind | None = None
) -> Response | None:
    """Return the stream of an answer after a cursor; None where the job has no such form.

    Raises: ApiError, as `resumed_stream`.
    """
    first = await gateway.door.find(caller, given)
    form = await _form(gateway, first.job_id)
    if form is None or form.kind == "job":
        return None
    if kind is not None and form.kind != kind:
        raise not_found("stream", given)
    others = [await gateway.door.find(caller, job_id) for job_id in form.jobs[1:]]
    jobs = [first, *others]
    after = parse_cursor(cursor or "0", _num_cursors(jobs)) if cursor else []
    if after is None:
        raise no_cursor()
    stream = gateway.streams.open(caller, jobs)
    try:
        return await _streamed(gateway, form, jobs, stream, _headers((), jobs), after)
    except BaseException:
        gateway.streams.close(stream, is_left=True)
        raise


def no_cursor() -> ApiError:
    """Return the error of a cursor that is none of the stream that is asked for."""
    told = f"{LAST_EVENT_ID}: is no cursor of it"
    return ApiError(400, told, code="invalid_cursor", param=LAST_EVENT_ID)


async def _form(gateway: Gateway, job_id: str) -> StreamForm | None:
    try:
        return await kept_form(gateway.redis, job_id_of(job_id))
    except SERVER_ERRORS:
        raise unreachable() from None


async def submit_all(
    gateway: Gateway,
    request: Request,
    caller: Caller,
    asked: GenerationAsked,
    prompts: Sequence[Mapping[str, Any]],
    served: ServedPool,
    names: Sequence[Mapping[str, str]],
) -> list[SubmittedJob]:
    """Submit a job for each prompt: all of them, or none."""
    accepted: list[SubmittedJob] = []
    key = request.headers.get("idempotency-key") or asked.idempotency_key
    try:
        for number, prompt in enumerate(prompts):
            part = key if key is None or not number else f"{key}/{number}"
            job = await gateway.door.submit(
                caller,
                served,
                {**asked.fields, **prompt, **_length(asked, prompt, served), **trace_of(request)},
                cache_key=asked.cache_key,
                idempotency_key=part,
                ticket=ticket_of(request),
                names=names[number],
            )
            accepted.append(job)
    except BaseException:
        await gateway.streams.cancel(
            job for job in accepted if job.place is not None and job.place.created
        )
        raise
    return accepted


async def _streamed(
    gateway: Gateway,
    form: StreamForm,
    jobs: Sequence[SubmittedJob],
    stream: OpenStream,
    headers: Mapping[str, str],
    after: Sequence[int],
) -> Response:
    """Return the response of a stream, once it is known not to fail at once."""
    events = [PeekedEvents(job, stream.caller, gateway.keys) for job in jobs]
    if not any(after):
        await _refuse_failures(gateway, form, jobs, events)
    vocabulary = gateway.models.vocabulary(jobs[0].client)
    frames = AnswerFrames(form, jobs, events, after, vocabulary)
    if stream.jobs_ahead:
        stream.tell_position(stream.jobs_ahead)

    async def end() -> None:
        for each in events:
            await each.aclose()
        await gateway.door.refund_unused(jobs)

    return FrameResponse(
        frames.frames(),
        stream,
        gateway.streams,
        headers=headers,
        on_writer=frames.write_to,
        on_end=end,
    )


async def _refuse_failures(
    gateway: Gateway,
    form: StreamForm,
    jobs: Sequence[SubmittedJob],
    events: Sequence[PeekedEvents],
) -> None:
    """Look at how the jobs begin. Raises: ApiError of the first that failed."""

    async def look(number: int) -> ApiError | None:
        try:
            finish = await events[number].failure(FIRST_EVENT_S)
        except ApiError as error:
            return error
        except ProducerError as error:
            return api_error(error, form.names[number])
        return None if finish is None else of_finish(finish, form.names[number])

    refused = [
        error
        for error in await asyncio.gather(*(look(number) for number in range(len(events))))
        if error is not None
    ]
    if refused:
        for each in events:
            await each.aclose()
        await gateway.door.refund_unused(jobs)
        raise refused[0]


async def _results(
    gateway: Gateway,
    request: Request,
    form: StreamForm,
    jobs: Sequence[SubmittedJob],
    stream: OpenStream,
) -> list[JobResult]:
    """Return the whole answers when they are there. Raises: ApiError."""

    async def result(number: int) -> JobResult:
        job = jobs[number]
        try:
            return await job.client.result(job.job_id, tenant=job.tenant)
        except ProducerError as error:
            raise api_error(error, form.names[number]) from None

    async def results() -> list[JobResult]:
        return await asyncio.gather(*(result(number) for number in range(len(jobs))))

    timeout_s = gateway.settings.gateway_answer_timeout_s
    try:
        return await attended(results(), request, stream, gateway.streams, timeout_s=timeout_s)
    except ApiError:
        if len(jobs) > 1:
            # What is left is no answer to anyone.
            await gateway.streams.cancel(jobs)
        raise
    finally:
        await gateway.door.refund_unused(jobs)


async def _texts(
    gateway: Gateway, jobs: Sequence[SubmittedJob], found: Sequence[JobResult]
) -> Mapping[int, str]:
    """Return the texts of all alternatives in the logprobs of results."""
    entries = [choice.logprobs for result in found for choice in result.choices]
    ids = set[int]().union(
        *map(alternatives_of, (*entries, *(result.prompt_logprobs for result in found)))
    )
    if not ids:
        return NO_TEXTS
    return await gateway.models.vocabulary(jobs[0].client).texts(ids)


def _length(
    asked: GenerationAsked, prompt: Mapping[str, Any], served: ServedPool
) -> dict[str, int]:
    """Return how long an answer may be where its request does not say it.

    No tokenizer makes more tokens of a prompt than it has bytes; where these leave little room, the
    prompt has few enough tokens, or the worker says by how much it is too long.
    """
    default, limit = asked.default_tokens, served.max_model_len
    if default is None:
        return {}
    if limit is not None:
        room = limit - num_bytes(prompt) - _TEMPLATE_TOKENS
        default = max(min(default, room), min(default, _LEAST_TOKENS))
    return {"max_tokens": default}


def num_bytes(value: Any) -> int:
    """Count the bytes of a value as JSON; of one that nests too deep, more than any model takes."""
    try:
        return len(to_json(value))
    except RecursionError:
        return sys.maxsize


def _headers(ignored: Sequence[str], jobs: Sequence[SubmittedJob]) -> dict[str, str]:
    headers = {"X-Tokenbus-Job-Id": jobs[0].job_id}
    if jobs[0].place is not None:
        headers["X-Tokenbus-Queue-Position"] = str(jobs[0].place.jobs_ahead)
    return headers | ignored_header(ignored)


def ignored_header(ignored: Sequence[str]) -> dict[str, str]:
    """Return the header that names the fields of a body that nothing was done with."""
    if not ignored:
        return {}
    shown = [name if _is_plain(name) else "?" for name in (each[:64] for each in ignored[:32])]
    return {"X-Tokenbus-Ignored-Fields": ", ".join(shown)}


def _is_plain(name: str) -> bool:
    """Tell whether a name can stand in a header, which has no blanks at its ends."""
    return name.isascii() and name.isprintable() and name == name.strip() != ""


def _num_cursors(jobs: Sequence[SubmittedJob]) -> int:
    return len(jobs) + (len(jobs) > 1)


def _plain_cursor(request: Request, jobs: Sequence[SubmittedJob]) -> Sequence[int]:
    """Return the cursor of a request that names its jobs by an idempotency key.

    Of jobs that are new nobody has seen anything, whatever a client sends along.
    """
    if any(job.place is not None and job.place.created for job in jobs):
        return ()
    given = request.headers.get(LAST_EVENT_ID, "")
    return parse_cursor(given, _num_cursors(jobs)) or ()
