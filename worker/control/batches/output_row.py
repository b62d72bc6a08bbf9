"""Rows of a batch's output: what became of each line, as OpenAI's files have it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.events import FINISHED_REASONS
from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.gateway.responses.job_steps import response_body
from tokenbus.producer.gateway.wire.chat_answer import chat_answer
from tokenbus.producer.gateway.wire.completion_answer import completion_answer
from tokenbus.producer.gateway.wire.refusals import of_finish

if TYPE_CHECKING:
    from tokenbus.producer.contract.result import JobResult
    from tokenbus.producer.gateway.wire.api_error import ApiError
    from tokenbus.producer.stored.batch_record import BatchRecord
    from tokenbus.worker.control.batches.batch_line import BatchLine, LineJob


@dataclass(frozen=True, slots=True)
class OutputRow:
    """A line of the output file, or of the error file; `num_tokens` is what its job has used."""

    number: int
    text: bytes
    is_error: bool
    num_tokens: int = 0


def answered_row(record: BatchRecord, job: LineJob, result: JobResult) -> OutputRow:
    """Return the row of a job that has ended."""
    line, usage = job.line, result.finish.usage
    num_tokens = usage.prompt_tokens + usage.completion_tokens
    if result.finish.reason not in FINISHED_REASONS:
        return replace(refused_row(record, line, of_finish(result.finish)), num_tokens=num_tokens)
    named: dict[str, Any] = {
        "created": record.created_at,
        "model": line.body.get("model") or record.pool,
        "with_logprobs": job.with_logprobs,
    }
    if job.response is not None:
        body = response_body(job.response, result)
    elif record.endpoint == "/v1/chat/completions":
        body = chat_answer(result, wire_id=f"chatcmpl-{result.job_id}", **named)
    else:
        body = completion_answer([result], wire_id=f"cmpl-{result.job_id}", **named)
    row = _row(record, line, {"status_code": 200, "body": body}, None)
    return replace(row, num_tokens=num_tokens)


def refused_row(record: BatchRecord, line: BatchLine, error: ApiError) -> OutputRow:
    """Return the row of a request that the door would have answered with an error."""
    return _row(record, line, {"status_code": error.status, "body": error.body()}, None)


def ended_row(record: BatchRecord, line: BatchLine, code: str, message: str) -> OutputRow:
    """Return the row of a line that was not answered before its batch had to end."""
    return _row(record, line, None, {"code": code, "message": message})


def _row(
    record: BatchRecord,
    line: BatchLine,
    response: dict[str, Any] | None,
    error: dict[str, Any] | None,
) -> OutputRow:
    named = hashlib.sha256(f"{record.id} {line.number}".encode()).hexdigest()[:32]
    if response is not None:
        response = {"request_id": f"req_{named}", **response}
    wire = {
        "id": f"batch_req_{named}",
        "custom_id": line.custom_id,
        "response": response,
        "error": error,
    }
    is_error = response is None or response["status_code"] != 200
    return OutputRow(line.number, to_json(wire) + b"\n", is_error)
