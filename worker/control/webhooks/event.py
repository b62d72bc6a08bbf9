"""Webhook events: what a receiver is told, named as OpenAI names it where it has a name for it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.stored.derived_ids import RESPONSE_FIELD, response_of_job

if TYPE_CHECKING:
    from tokenbus.producer.contract.result import JobResult
    from tokenbus.producer.scripts.control import ClaimedWebhook

JOB_ENDED = "job.ended"
# By the reason of a job; what is none of them has failed.
_OF_RESPONSES = {
    "stop": "response.completed",
    "length": "response.incomplete",
    "cancelled": "response.cancelled",
}


def message_id(hook: ClaimedWebhook) -> str:
    """Return the id of a hook's event: the same at every try, and of no other event."""
    told = f"{hook.tenant}\n{hook.job_id}\n{hook.created_ms}"
    return f"evt_{hashlib.sha256(told.encode()).hexdigest()[:32]}"


def event_body(hook: ClaimedWebhook, result: JobResult | None) -> bytes:
    """Put the event of a hook together; `result` is that of its job, None where it has expired."""
    finish = json.loads(hook.finish) if result is None else json.loads(result.finish.dump())
    wire: dict[str, Any] = {
        "id": message_id(hook),
        "object": "event",
        "created_at": hook.created_ms // 1000,
    }
    if hook.event:
        wire |= {"type": hook.event, "data": {"id": hook.event_of}}
    elif RESPONSE_FIELD in hook.metadata:
        name = _OF_RESPONSES.get(str(finish["reason"]), "response.failed")
        job_id = JobAddress.parse(hook.job_id).job_id
        wire |= {"type": name, "data": {"id": response_of_job(job_id)}}
    else:
        wire |= {"type": JOB_ENDED} | _job_fields(hook, result, finish)
    return json.dumps(wire, separators=(",", ":")).encode()


def _job_fields(
    hook: ClaimedWebhook, result: JobResult | None, finish: dict[str, Any]
) -> dict[str, Any]:
    """Return what is told of a job; `choices` is null where its result was gone by then."""
    job_id = JobAddress.parse(hook.job_id).job_id
    choices = None
    if result is not None:
        choices = [
            {"index": choice.index, "text": choice.text, "reason": choice.reason}
            for choice in result.choices
        ]
    return {
        "data": {"id": job_id, "tenant": hook.tenant},
        "v": 1,
        "event": JOB_ENDED,
        "job": job_id,
        "tenant": hook.tenant,
        "ended_ms": hook.created_ms,
        "metadata": hook.metadata,
        "finish": finish,
        "choices": choices,
    }
