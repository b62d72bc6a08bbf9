"""Errors of the client side as OpenAI's API tells them: status, code and field."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.result import JobCancelled, JobExpired, JobFailed
from tokenbus.producer.errors import (
    CursorInvalid,
    DeadlineUnmeetable,
    IdempotencyConflict,
    JobForgotten,
    JobLost,
    JobUnknown,
    ProducerError,
    QueueFull,
    RequestInvalid,
    ResultTimeout,
    ServerUnreachable,
)
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenbus.producer.contract.events import Finish

CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
# Codes of failed jobs (docs/failures.md) that are the request's own fault.
_OF_REQUEST = {"invalid_request", "too_long", "grammar", "rules"}
# A server that is away is asked again after so many seconds.
_RETRY_S = 1


def api_error(error: ProducerError, names: Mapping[str, str] | None = None) -> ApiError:
    """Return what the caller is told of an error.

    Args:
        names: fields as the caller has spelled them, by the name that the error has for them.
    """
    if isinstance(error, RequestInvalid) and not isinstance(error, CursorInvalid):
        return of_field(error.field, error.message, names)
    if isinstance(error, JobFailed):
        return failed(error.code, str(error).partition(": ")[2], error.field, names)
    for kind, told in _TOLD:
        if isinstance(error, kind):
            return told(error)
    return ApiError(503, "The queue refuses the gateway.", code="queue_refused")


def of_finish(finish: Finish, names: Mapping[str, str] | None = None) -> ApiError:
    """Return what the caller is told of a job that ended early."""
    if finish.reason == "cancelled":
        return cancelled()
    if finish.reason == "expired":
        return expired()
    error = finish.error
    if error is None:
        return ApiError(500, f"The job ended as {finish.reason}.", code=finish.reason)
    return failed(error.code, error.message, error.field, names)


def failed(
    code: str, message: str, field: str | None, names: Mapping[str, str] | None = None
) -> ApiError:
    """Return what the caller is told of a failed job."""
    if code in ("too_long", "too_large"):
        param = (names or {}).get(field or "", field)
        return ApiError(400, message, code=CONTEXT_LENGTH_EXCEEDED, param=param)
    if code in _OF_REQUEST:
        return of_field(field, message, names, code)
    return ApiError(500, message, code=code)


def of_field(
    field: str | None,
    message: str,
    names: Mapping[str, str] | None = None,
    code: str = "invalid_request",
) -> ApiError:
    """Return the refusal of a field, by the path under which the caller wrote it."""
    head, dot, rest = (field or "").partition(".")
    param = f"{(names or {}).get(head, head)}{dot}{rest}" or None
    told = f"{param}: {message}" if param else message
    return ApiError(400, told, code=code, param=param)


def cancelled() -> ApiError:
    """Return what the caller is told of a job that somebody cancelled."""
    return ApiError(409, "The job was cancelled.", code="cancelled")


def expired() -> ApiError:
    """Return what the caller is told of a job whose deadline passed."""
    return ApiError(408, "The deadline of the job passed.", code="deadline_exceeded")


def unreachable() -> ApiError:
    """Return what the caller is told while the server is away."""
    return ApiError(
        503, "The queue does not answer.", code="queue_unreachable", headers=retry(_RETRY_S)
    )


def retry(seconds: float) -> dict[str, str]:
    """Return the header that says when to come back, a second from now at the earliest."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _full(error: QueueFull) -> ApiError:
    """Tell a tenant of its own queue's length, and of nobody else's."""
    headers = retry(error.retry_after_s)
    if error.ticket:
        headers["X-Tokenbus-Ticket"] = str(error.ticket)
    after = f"try again in {headers['Retry-After']} s"
    if error.scope == "memory":
        return ApiError(503, f"The queue is full; {after}.", code="queue_full", headers=headers)
    return ApiError(429, f"Too much waits already; {after}.", code="queue_full", headers=headers)


def _late(error: DeadlineUnmeetable) -> ApiError:
    return ApiError(503, str(error), code="deadline_unmeetable", headers=retry(error.eta_s))


def _fixed(status: int, message: str, code: str) -> Callable[[Any], ApiError]:
    return lambda _: ApiError(status, message, code)


# The first kind that an error is of counts.
_TOLD: tuple[tuple[type[ProducerError], Callable[[Any], ApiError]], ...] = (
    (
        CursorInvalid,
        lambda error: ApiError(400, error.message, "invalid_cursor", param="last-event-id"),
    ),
    (QueueFull, _full),
    (DeadlineUnmeetable, _late),
    (
        IdempotencyConflict,
        _fixed(409, "The idempotency key belongs to another request.", "idempotency_conflict"),
    ),
    (JobForgotten, _fixed(404, "The result of this job is not kept any more.", "expired")),
    (JobUnknown, _fixed(404, "No job has this id.", "not_found")),
    (
        JobLost,
        lambda _: ApiError(
            503, "The queue has lost the job; send it again.", "job_lost", headers=retry(_RETRY_S)
        ),
    ),
    (JobCancelled, lambda _: cancelled()),
    (JobExpired, lambda _: expired()),
    (ResultTimeout, _fixed(408, "The answer took too long.", "timeout")),
    (ServerUnreachable, lambda _: unreachable()),
)
