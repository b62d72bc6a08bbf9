"""Routes of jobs: `/v1/jobs`, submitted, listed, looked at, cancelled and streamed."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response

from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.gateway.access.caller import Caller
from tokenbus.producer.gateway.answering import (
    LAST_EVENT_ID,
    ignored_header,
    no_cursor,
    stream_of,
)
from tokenbus.producer.gateway.body import read_object
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.jobs.job_frames import job_frames, position_frame
from tokenbus.producer.gateway.jobs.owned_jobs import owned_jobs
from tokenbus.producer.gateway.jobs.peeked_events import PeekedEvents
from tokenbus.producer.gateway.jobs.stream_form import job_id_of, parse_cursor
from tokenbus.producer.gateway.jobs.stream_response import FrameResponse
from tokenbus.producer.gateway.request_headers import ticket_of, trace_of
from tokenbus.producer.gateway.wire import sse
from tokenbus.producer.gateway.wire.api_description import ERROR_RESPONSES, JOB_BODY
from tokenbus.producer.gateway.wire.api_error import ApiError, not_found
from tokenbus.producer.gateway.wire.chat_answer import message_body
from tokenbus.producer.gateway.wire.generation import job_asked_of
from tokenbus.producer.gateway.wire.job_name import JobName
from tokenbus.producer.gateway.wire.usage import usage_body
from tokenbus.producer.scripts.replies import JobState

if TYPE_CHECKING:
    from tokenbus.producer.client.job_list import ListedJob
    from tokenbus.producer.gateway.gateway import Gateway
    from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob

_Who = Annotated[Caller, Depends(caller)]
_MAX_LISTED = 1000


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["jobs"], responses=ERROR_RESPONSES)
    extra = {"requestBody": JOB_BODY}

    @routes.post("/v1/jobs", status_code=202, response_class=JSONResponse, openapi_extra=extra)
    async def submit_job(request: Request, who: _Who) -> Response:
        """Queue a job; it goes on with or without a reader."""
        return await _submit(gateway, request, who)

    @routes.get("/v1/jobs")
    async def list_jobs(
        who: _Who, limit: Annotated[int, Query(ge=1, le=_MAX_LISTED)] = 100
    ) -> dict[str, Any]:
        """List the caller's jobs that have not ended."""
        return await _list(gateway, who, limit)

    @routes.get("/v1/jobs/{job_id}")
    async def show_job(job_id: str, who: _Who) -> dict[str, Any]:
        """Show a job, and its result once it has ended."""
        return await _shown(await gateway.door.find(who, job_id))

    @routes.post("/v1/jobs/{job_id}/cancel")
    async def cancel_job(job_id: str, who: _Who) -> dict[str, Any]:
        """Cancel a job wherever it is; one that has ended stays as it is."""
        job = await gateway.door.find(who, job_id)
        await job.client.cancel(job.job_id, job.tenant)
        return await _shown(job)

    @routes.delete("/v1/jobs/{job_id}")
    async def delete_job(job_id: str, who: _Who) -> dict[str, Any]:
        """Cancel a job, as `/cancel` does."""
        return await cancel_job(job_id, who)

    @routes.get("/v1/jobs/{job_id}/stream", response_class=Response)
    async def stream_job(
        request: Request, job_id: str, who: _Who, after: str | None = None
    ) -> Response:
        """Stream a job after the cursor of Last-Event-ID, else of `after`, else from its start.

        What began as a stream of chunks goes on as one.
        """
        return await _stream(gateway, request, who, job_id, after)

    return routes


async def _submit(gateway: Gateway, request: Request, who: Caller) -> Response:
    body = await read_object(request, gateway.settings)
    asked = job_asked_of(body, who.priorities, is_strict=gateway.settings.gateway_strict)
    who = who.for_user(asked.user)
    served = await gateway.models.resolve(asked.model, who)
    job = await gateway.door.submit(
        who,
        served,
        asked.fields | trace_of(request),
        cache_key=asked.cache_key,
        idempotency_key=request.headers.get("idempotency-key") or asked.idempotency_key,
        ticket=ticket_of(request),
    )
    assert job.place is not None
    told = {
        "id": job.job_id,
        "object": "job",
        "created": job.created,
        "status": job.place.state.value,
        "model": served.name,
        "jobs_ahead": job.place.jobs_ahead,
        "eta_s": job.place.eta_s,
        "stream": f"/v1/jobs/{job.job_id}/stream",
    }
    headers = {"X-Tokenbus-Job-Id": job.job_id} | ignored_header(asked.ignored)
    return JSONResponse(told, 202, headers)


async def _list(gateway: Gateway, who: Caller, limit: int) -> dict[str, Any]:
    """List jobs of the caller in all pools; a tenant's other keys have theirs."""
    found: list[dict[str, Any]] = []
    is_whole = True
    for pool in await gateway.models.pools():
        if not who.may_use(pool):
            continue
        client = await gateway.models.client(pool)
        tenant = None if who.key_id is None else who.tenant
        listed = await owned_jobs(client, who.id_prefix, tenant)
        is_whole = is_whole and listed.is_whole
        found += [
            _listed(job, name, pool)
            for job in listed.jobs
            if (name := JobName.parse(job.job_id)) is not None
        ]
    has_more = len(found) > limit or not is_whole
    return {"object": "list", "data": found[:limit], "has_more": has_more}


def _listed(job: ListedJob, name: JobName, pool: str) -> dict[str, Any]:
    return {
        "id": job.job_id,
        "object": "job",
        "created": name.created,
        "status": job.state.value,
        "priority": job.priority,
        "pool": pool,
    }


async def _shown(job: SubmittedJob) -> dict[str, Any]:
    """Return what is known of a job. Raises: ApiError 404."""
    address = JobAddress(job.job_id, job.tenant).text
    scripts = job.client.scripts
    record = await scripts.queue.record(address)
    stored = None
    if record is None or record.state not in (JobState.DELAYED, JobState.WAITING):
        # The log decides: its readers know of the end before the record does.
        stored = await scripts.log.result(address)
    if record is None and stored is None:
        raise not_found("job", job.job_id)
    body: dict[str, Any] = {
        "id": job.job_id,
        "object": "job",
        "created": job.created,
        "status": "done" if record is None else record.state.value,
        "pool": job.pool,
    }
    return body if stored is None else body | _ended(JobResult.parse(stored))


def _ended(result: JobResult) -> dict[str, Any]:
    finish = result.finish
    told: dict[str, Any] = {
        "status": "done",
        "reason": finish.reason,
        "choices": [
            {
                "index": choice.index,
                "text": choice.text,
                "message": message_body(choice),
                "finish_reason": choice.finish_reason,
            }
            for choice in result.choices
        ],
        "usage": usage_body(finish.usage),
    }
    if finish.error is not None:
        error = finish.error
        told["error"] = {"code": error.code, "message": error.message, "param": error.field}
    return told


async def _stream(
    gateway: Gateway, request: Request, who: Caller, job_id: str, after: str | None
) -> Response:
    given = request.headers.get(LAST_EVENT_ID) or after or ""
    named, _, cursor = given.rpartition(":")
    if named and job_id_of(named) != job_id_of(job_id):
        raise no_cursor()
    answer = await stream_of(gateway, who, job_id, cursor)
    if answer is not None:
        return answer
    job = await gateway.door.find(who, job_id)
    numbers = parse_cursor(cursor or "0", 1)
    if numbers is None:
        raise no_cursor()
    shown = await _shown(job)
    events = PeekedEvents(job, who, gateway.keys)
    stream = gateway.streams.open(who, [job], is_kept=True)
    stream.position_frame = partial(position_frame, job.job_id)
    if shown["status"] == JobState.WAITING:
        await gateway.streams.locate(stream)
    return FrameResponse(
        job_frames(job, events, numbers[0]),
        stream,
        gateway.streams,
        headers={"X-Tokenbus-Job-Id": job.job_id},
        last_frame=b"",
        error_frame=_error_event,
        on_end=events.aclose,
    )


def _error_event(error: ApiError) -> bytes:
    return sse.data_frame(sse.error_body(error), event="error")
