"""Lines of a batch: read, checked, and turned into requests of the queue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.gateway.responses.input_items import invalid
from tokenbus.producer.gateway.responses.response_request import ResponseRequest, field_as_sent
from tokenbus.producer.gateway.wire.generation import asked_of
from tokenbus.producer.gateway.wire.refusals import api_error
from tokenbus.producer.stored.batch_record import ENDPOINTS
from tokenbus.producer.stored.derived_ids import response_of_job
from tokenbus.producer.stored.response_record import ResponseRecord

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenbus.producer.gateway.access.caller import Caller
    from tokenbus.producer.stored.batch_record import BatchRecord

MAX_LINE_BYTES = 8 * 1024 * 1024
MAX_CUSTOM_ID = 512


@dataclass(frozen=True, slots=True)
class LineProblem:
    """What is wrong with a line, as the errors of a batch tell it."""

    code: str
    message: str
    param: str | None = None

    def wire(self, line: int) -> dict[str, Any]:
        """Return the error of a line, counted from 1."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": line}


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A line of the input: its number from 1, its name and the body of its request."""

    number: int
    custom_id: str
    body: dict[str, Any]

    @classmethod
    def parse(cls, number: int, text: bytes, record: BatchRecord) -> BatchLine | LineProblem:
        """Read a line, or say what is wrong with it."""
        if len(text) > MAX_LINE_BYTES:
            return LineProblem("line_too_long", f"The line has more than {MAX_LINE_BYTES} bytes.")
        try:
            given = json.loads(text)
        except (ValueError, RecursionError):
            return LineProblem("invalid_json_line", "The line is no JSON.")
        if not isinstance(given, dict):
            return LineProblem("invalid_json_line", "The line is no JSON object.")
        problem = _problem(given, record)
        return problem or cls(number, given["custom_id"], given["body"])


def _problem(given: dict[str, Any], record: BatchRecord) -> LineProblem | None:
    """Return what is wrong with the fields of a line."""
    custom_id, url, body = (given.get(name) for name in ("custom_id", "url", "body"))
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        told = f"custom_id must be text of 1 to {MAX_CUSTOM_ID} characters."
        return LineProblem("missing_custom_id", told, "custom_id")
    if not _is_text(custom_id):
        return LineProblem("missing_custom_id", "custom_id is no text.", "custom_id")
    if given.get("method") != "POST":
        return LineProblem("invalid_method", "method must be POST.", "method")
    if url != record.endpoint:
        is_known = isinstance(url, str) and url in ENDPOINTS
        told = f"url must be the batch's endpoint, {record.endpoint}."
        return LineProblem("mismatched_url" if is_known else "invalid_url", told, "url")
    if not isinstance(body, dict):
        return LineProblem("missing_body", "body must be a JSON object.", "body")
    if record.model is not None and body.get("model") != record.model:
        told = f"body.model must be {record.model}, the model of the first line."
        return LineProblem("mismatched_model", told, "body.model")
    return None


@dataclass(frozen=True, slots=True)
class LineJob:
    """What the queue is asked for a line; a `response` is what it answers, if it is one."""

    line: BatchLine
    request: JobRequest
    response: ResponseRecord | None = None
    with_logprobs: bool = False


def line_job(
    line: BatchLine, record: BatchRecord, caller: Caller, job_id: str, max_tokens: Mapping[str, int]
) -> LineJob:
    """Return the request of a line's job.

    Args:
        caller: who has asked for the batch.
        max_tokens: by endpoint, of an answer whose request names no bound.
    Raises: ApiError with the field, as the door would.
    """
    default = max_tokens[record.endpoint]
    if record.endpoint == "/v1/responses":
        return _response_job(line, record, caller, job_id, default)
    is_chat = record.endpoint == "/v1/chat/completions"
    takes: Literal["messages", "prompt"] = "messages" if is_chat else "prompt"
    # However urgent a line says it is, it is its batch's.
    body = line.body | {"priority": None, "service_tier": None}
    asked = asked_of(body, (record.priority,), takes=takes)
    if asked.with_prompt_logprobs:
        raise invalid("prompt_logprobs", "not in a batch")
    fields = asked.fields | _of_batch(record, caller, asked.cache_key)
    if not is_chat:
        fields |= _prompt(fields.pop("prompt"))
    if not any(fields.get(name) is not None for name in ("max_tokens", "max_completion_tokens")):
        fields["max_tokens"] = default
    try:
        request = JobRequest.of_fields(fields)
    except RequestInvalid as error:
        raise api_error(error, asked.names) from None
    return LineJob(line, request, with_logprobs=request.logprobs is not None)


def _response_job(
    line: BatchLine, record: BatchRecord, caller: Caller, job_id: str, max_tokens: int
) -> LineJob:
    asked = ResponseRequest.parse(line.body)
    for name in ("previous_response_id", "stream", "background", "callback_url"):
        if line.body.get(name):
            raise invalid(name, "not in a batch")
    response_id = response_of_job(job_id)
    items = asked.items(response_id, {})
    fields, messages = asked.job_fields([], items, max_tokens)
    cache_key = asked.given.get("prompt_cache_key")
    if cache_key is not None and not isinstance(cache_key, str):
        raise invalid("prompt_cache_key", "must be text")
    try:
        request = JobRequest.of_fields(fields | _of_batch(record, caller, cache_key))
    except RequestInvalid as error:
        raise invalid(field_as_sent(error.field, messages), error.message) from None
    response = ResponseRecord(
        id=response_id,
        owner=record.owner,
        tenant=record.tenant,
        pool=record.pool,
        job_id=job_id,
        created_at=record.created_at,
        model=asked.model or record.pool,
        store=False,
        request=asked.told,
    )
    return LineJob(line, request, response)


def _of_batch(record: BatchRecord, caller: Caller, cache_key: str | None) -> dict[str, Any]:
    """Return the fields that a line does not say itself."""
    own = {"tenant": record.tenant, "priority": record.priority}
    return own | caller.cache_fields(cache_key or None)


def _prompt(given: Any) -> dict[str, Any]:
    """Return the field of a job for the prompt of a completion: a text, or token ids."""
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]
    if isinstance(given, str):
        return {"prompt": given}
    is_ids = isinstance(given, list) and all(isinstance(each, int) for each in given)
    if given and is_ids:
        return {"token_ids": given}
    told = "must be one text or one list of token ids; several prompts are several lines"
    raise invalid("prompt", told)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
