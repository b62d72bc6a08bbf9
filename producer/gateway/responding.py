"""Responding: from a request for a response to its answer, as a stream, at once or later.

All that is told follows from the stored record and the tokens of the job, so any gateway goes on
where another was. It is one file because it is one way: asked, submitted, kept, told.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from fastapi.responses import JSONResponse

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.callback_url import check_callback_url
from tokenbus.producer.contract.result import JobEndedEarly, JobResult
from tokenbus.producer.errors import JobUnknown, ProducerError
from tokenbus.producer.gateway.answering import ignored_header
from tokenbus.producer.gateway.earlier_items import EarlierItems
from tokenbus.producer.gateway.jobs.attended import attended
from tokenbus.producer.gateway.jobs.stream_response import FrameResponse
from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob
from tokenbus.producer.gateway.pools.vocabulary import alternatives_of
from tokenbus.producer.gateway.request_headers import ticket_of, trace_of
from tokenbus.producer.gateway.response_frames import ResponseFrames
from tokenbus.producer.gateway.responses.input_items import invalid
from tokenbus.producer.gateway.responses.job_steps import (
    live_steps,
    logged_steps,
    response_body,
    result_steps,
)
from tokenbus.producer.gateway.responses.response_events import ResponseEvents
from tokenbus.producer.gateway.responses.response_object import response_object
from tokenbus.producer.gateway.responses.response_request import field_as_sent
from tokenbus.producer.gateway.wire.api_error import ApiError, not_found
from tokenbus.producer.gateway.wire.generation import asked_of
from tokenbus.producer.gateway.wire.logprob_forms import NO_TEXTS
from tokenbus.producer.gateway.wire.refusals import api_error
from tokenbus.producer.stored.derived_ids import RESPONSE_FIELD, response_of_job
from tokenbus.producer.stored.errors import NotStored
from tokenbus.producer.stored.response_record import ResponseRecord

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from tokenbus.producer.gateway.access.caller import Caller
    from tokenbus.producer.gateway.gateway import Gateway
    from tokenbus.producer.gateway.pools.vocabulary import Vocabulary
    from tokenbus.producer.gateway.responses.response_events import Step, Wire
    from tokenbus.producer.gateway.responses.response_request import ResponseRequest
    from tokenbus.producer.stored.stored_responses import StoredResponse, StoredResponses

# How long a cancelled job is waited for before the response is told as it stands.
_CANCEL_WAIT_S = 5.0
# How fields of a job that failed are spelled here.
_SPELLED = {"messages": "input", "max_tokens": "max_output_tokens", "grammar": "text.format"}
# Fields of a request that say for whom and how urgently, in the words of every route.
_OF_CALLER = ("service_tier", "user", "safety_identifier", "prompt_cache_key", "model")


class Responding:
    """Creates the responses of callers, and tells them, again and again."""

    def __init__(self, gateway: Gateway, responses: StoredResponses) -> None:
        self._gateway = gateway
        self._responses = responses
        self._earlier = EarlierItems(gateway.models, responses)

    async def create(self, request: Request, caller: Caller, asked: ResponseRequest) -> Response:
        """Create a response and answer as it was asked for. Raises: ApiError."""
        settings = self._gateway.settings
        if asked.unknown and settings.gateway_strict:
            raise invalid(asked.unknown[0], "is no field of this request")
        chain = await self._earlier.chain(caller, asked.previous_id)
        record, job, who = await self._submit(request, caller, asked, chain)
        headers = {"X-Tokenbus-Job-Id": job.job_id} | ignored_header(asked.unknown)
        if asked.is_background and not asked.is_stream:
            events = ResponseEvents(record)
            events.begin()
            return JSONResponse(events.response, headers=headers)
        stream = self._gateway.streams.open(who, [job], is_kept=asked.is_background)
        if asked.is_stream:
            check = partial(self._gateway.keys.check, who)
            steps = live_steps(job.client, job.job_id, job.tenant, check)
            frames = ResponseFrames(record, steps, self._vocabulary(record, job))

            async def end() -> None:
                await self._keep_result(record, job)
                await self._gateway.door.refund_unused([job])

            return FrameResponse(
                frames.all(), stream, self._gateway.streams, headers=headers, last_frame=b"",
                error_frame=frames.error, on_end=end,
            )  # fmt: skip
        timeout_s = settings.gateway_answer_timeout_s
        try:
            result = await attended(
                _answer(job), request, stream, self._gateway.streams, timeout_s=timeout_s
            )
        finally:
            await self._gateway.door.refund_unused([job])
        await self._keep_result(record, job)
        return JSONResponse(await self._told(record, result), headers=headers)

    async def _submit(
        self,
        request: Request,
        caller: Caller,
        asked: ResponseRequest,
        chain: Sequence[StoredResponse],
    ) -> tuple[ResponseRecord, SubmittedJob, Caller]:
        """Queue the job of a response and keep what was asked. Raises: ApiError."""
        earlier = await self._earlier.of_chain(chain)
        referred = await self._earlier.referred(caller, asked.references(), earlier)
        items = asked.items("resp_", referred)
        fields, messages = asked.job_fields(
            earlier, items, self._gateway.settings.gateway_chat_tokens
        )
        told = {name: asked.given[name] for name in _OF_CALLER if name in asked.given}
        generation = asked_of(fields | told, caller.priorities, takes="messages")
        who = caller.for_user(generation.user)
        served = await self._gateway.models.resolve(asked.model, who)
        if "callback_url" in asked.given:
            _tell_end(generation.fields, asked)
        try:
            job = await self._gateway.door.submit(
                who,
                served,
                generation.fields | trace_of(request),
                cache_key=generation.cache_key,
                idempotency_key=request.headers.get("idempotency-key"),
                ticket=ticket_of(request),
            )
        except ApiError as error:
            raise _respelled(error, field_as_sent(error.param or "", messages)) from None
        response_id = response_of_job(job.job_id)
        ancestors = [each.record.id for each in chain]
        record = ResponseRecord(
            id=response_id,
            owner=caller.id_prefix,
            tenant=job.tenant,
            pool=job.pool,
            job_id=job.job_id,
            created_at=job.created,
            model=served.name,
            background=asked.is_background,
            store=asked.is_stored,
            ancestors=tuple(ancestors),
            request=asked.told | ({"service_tier": generation.tier} if generation.tier else {}),
        )
        if asked.is_stored:
            await self._responses.put(record, asked.items(response_id, referred))
        return record, job, who

    async def _told(self, record: ResponseRecord, result: JobResult) -> Wire:
        """Return a response whose job has ended."""
        return response_body(record, result, await self._texts(record, result))

    async def _texts(self, record: ResponseRecord, result: JobResult) -> Mapping[int, str]:
        """Return the texts of all alternatives in the logprobs of a response."""
        if not record.with_logprobs or not result.choices:
            return NO_TEXTS
        client = await self._gateway.models.client(record.pool)
        ids = alternatives_of(result.choices[0].logprobs)
        return await self._gateway.models.vocabulary(client).texts(ids)

    def _vocabulary(self, record: ResponseRecord, job: SubmittedJob) -> Vocabulary | None:
        """Return what tells the texts of alternatives, where there are any."""
        return self._gateway.models.vocabulary(job.client) if record.with_logprobs else None

    async def get(self, caller: Caller, response_id: str) -> StoredResponse:
        """Return a response of the caller, with its result if it has one. Raises: ApiError 404."""
        try:
            stored = await self._responses.get(caller.id_prefix, response_id)
        except NotStored:
            raise not_found("response", response_id) from None
        if stored.result is not None:
            return stored
        client = await self._gateway.models.client(stored.record.pool)
        result = await self._responses.store_result(stored.record, client.scripts)
        return type(stored)(stored.record, stored.items, result)

    async def show(self, caller: Caller, response_id: str) -> Wire:
        """Return a response of the caller as it stands. Raises: ApiError 404."""
        stored = await self.get(caller, response_id)
        if stored.result is not None:
            return await self._told(stored.record, stored.result)
        return await self._unfinished(stored)

    async def _unfinished(self, stored: StoredResponse) -> Wire:
        """Return a response whose job has no result: how far it is, or that it is lost."""
        job = await self._job(stored.record)
        address = JobAddress(job.job_id, job.tenant).text
        events = ResponseEvents(stored.record)
        events.begin()
        for step in await logged_steps(job.client, address):
            events.take(step)
        if events.has_started:
            return events.response
        if await job.client.scripts.queue.record(address) is None:
            lost = response_object(stored.record, "failed", [])
            message = "The answer of this response is not kept any more."
            return lost | {"error": {"code": "server_error", "message": message}}
        return events.response

    async def stream(self, caller: Caller, response_id: str, after: int) -> Response:
        """Return the events of a response after a sequence number. Raises: ApiError 404."""
        stored = await self.get(caller, response_id)
        job = await self._job(stored.record)
        check = partial(self._gateway.keys.check, caller)
        steps = (
            _stored_steps(stored.result)
            if stored.result is not None
            else live_steps(job.client, job.job_id, job.tenant, check)
        )
        if stored.result is not None:
            # Asked for together, and not token by token.
            await self._texts(stored.record, stored.result)
        frames = ResponseFrames(stored.record, steps, self._vocabulary(stored.record, job), after)
        is_kept = stored.record.background
        stream = self._gateway.streams.open(caller, [job], is_kept=is_kept)

        async def end() -> None:
            if stored.result is None:
                await self._keep_result(stored.record, job)

        return FrameResponse(
            frames.all(), stream, self._gateway.streams, last_frame=b"",
            error_frame=frames.error, on_end=end,
        )  # fmt: skip

    async def cancel(self, caller: Caller, response_id: str) -> Wire:
        """End a response; one that has ended stays as it is. Raises: ApiError 404."""
        stored = await self.get(caller, response_id)
        if stored.result is None:
            job = await self._job(stored.record)
            with contextlib.suppress(ProducerError, TimeoutError):
                await job.client.cancel(job.job_id, job.tenant)
                async with asyncio.timeout(_CANCEL_WAIT_S):
                    await _result(job)
        return await self.show(caller, response_id)

    async def remove(self, caller: Caller, response_id: str) -> None:
        """Forget a response; if its job goes on, it is cancelled. Raises: ApiError 404."""
        stored = await self.get(caller, response_id)
        if stored.result is None:
            job = await self._job(stored.record)
            with contextlib.suppress(JobUnknown):
                await job.client.cancel(job.job_id, job.tenant)
        await self._responses.remove(stored.record)

    async def _job(self, record: ResponseRecord) -> SubmittedJob:
        return SubmittedJob(
            job_id=record.job_id,
            tenant=record.tenant,
            pool=record.pool,
            client=await self._gateway.models.client(record.pool),
            created=record.created_at,
        )

    async def _keep_result(self, record: ResponseRecord, job: SubmittedJob) -> None:
        """Keep the result of a response with it; the control service does it where this fails."""
        if record.store:
            try:
                await self._responses.store_result(record, job.client.scripts)
            except (ProducerError, *SERVER_ERRORS):
                return


async def _answer(job: SubmittedJob) -> JobResult:
    """Return the result of a job. Raises: ApiError of one that failed, in this API's words."""
    try:
        return await _result(job)
    except JobEndedEarly as error:
        raise api_error(error, _SPELLED) from None


async def _result(job: SubmittedJob) -> JobResult:
    """Return the result of a job, that of a cancelled one too. Raises: as `AsyncClient.result`."""
    try:
        return await job.client.result(job.job_id, tenant=job.tenant)
    except JobEndedEarly as ended:
        if ended.result.finish.reason == "cancelled":
            return ended.result
        raise


async def _stored_steps(result: JobResult) -> AsyncGenerator[Step, None]:
    for step in result_steps(result):
        yield step


def _tell_end(fields: dict[str, Any], asked: ResponseRequest) -> None:
    """Say in the fields of a job where its end is told, as that of a response.

    Raises: ApiError 400.
    """
    if not asked.is_stored:
        raise invalid("callback_url", "only of a response that is stored")
    try:
        fields["callback_url"] = check_callback_url(asked.given["callback_url"])
    except (TypeError, ValueError) as error:
        raise invalid("callback_url", str(error)) from None
    metadata = fields.get("metadata", {})
    if isinstance(metadata, dict):
        fields["metadata"] = metadata | {RESPONSE_FIELD: "true"}


def _respelled(error: ApiError, param: str) -> ApiError:
    """Return an error with the path of its field as the caller has spelled it."""
    if not error.param:
        return error
    message = error.message.replace(error.param, param, 1)
    return ApiError(error.status, message, error.code, param, error.type, error.headers)
