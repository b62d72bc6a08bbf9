"""Errors of the client side: one leaf per decision a caller can take.

The ends of a job that are errors, with the result so far, are in `contract.result`.
"""

from __future__ import annotations


class ProducerError(Exception):
    """Base of everything the client side raises on purpose."""


class RequestInvalid(ProducerError, ValueError):
    """A request breaks the schema; `field` names the offending part."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class ClientSettingsInvalid(ProducerError, ValueError):
    """A setting of a client, or its variable `TOKENBUS_…`, is ill-typed or out of bounds."""


class SchemaMismatch(RequestInvalid):
    """A message speaks a wire version that this release does not know."""


class CursorInvalid(RequestInvalid):
    """A cursor is negative or lies beyond the last token of the job."""


class QueueFull(ProducerError):
    """The queue of a `tenant`, the `pool` or the server's `memory` is full.

    Come back after `retry_after_s`. `ticket` keeps the caller's place: handed in again with the
    same request it is served before new arrivals, once its time has come.
    """

    def __init__(
        self, scope: str, queued_tokens: int, max_tokens: int, retry_after_s: float, ticket: int
    ) -> None:
        state = f"the queue of this {scope} holds {queued_tokens} of {max_tokens} tokens"
        if scope == "memory":
            state = "the server's memory is full"
        super().__init__(f"{state}; try again in {retry_after_s:.1f} s")
        self.scope = scope
        self.queued_tokens = queued_tokens
        self.max_tokens = max_tokens
        self.retry_after_s = retry_after_s
        self.ticket = ticket


class DeadlineUnmeetable(ProducerError):
    """The measured drain rate says that the job would start after its deadline."""

    def __init__(self, eta_s: float, deadline_s: float) -> None:
        super().__init__(f"the job would wait about {eta_s:.1f} s, past its {deadline_s:.1f} s")
        self.eta_s = eta_s
        self.deadline_s = deadline_s


class IdempotencyConflict(ProducerError):
    """The same job id or idempotency key was used for a different request."""


class JobUnknown(ProducerError):
    """No job of this id is waiting, running or kept."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id} in this pool; it may have ended and been forgotten")
        self.job_id = job_id


class JobForgotten(JobUnknown):
    """A job that was heard of before is not known any more: its result has expired.

    A server that lost its last writes forgets jobs too, and who asks for the first time, with a
    cursor from before, cannot tell one from the other.
    """

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.args = (
            f"job {job_id} is not known any more: its log and result have expired, or the server"
            " lost it with its last writes",
        )


class JobDropped(JobForgotten):
    """A finished job whose result was dropped before its time, for room.

    Its record still says that it ended; to run it again, submit it under another id.
    """

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.args = (
            f"job {job_id} has ended, and its result was dropped for room: the finished jobs of its"
            " pool or tenant took more bytes than they may (TOKENBUS_RESULT_BYTES,"
            " TOKENBUS_TENANT_RESULT_BYTES of the workers)",
        )


class JobLost(ProducerError):
    """The server no longer knows the job and will send nothing more for it."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"the server lost job {job_id} (restart or failover took back its last writes);"
            " submit it again"
        )
        self.job_id = job_id


class ResultTimeout(ProducerError, TimeoutError):
    """The job did not end within the time the caller gave; it goes on."""


class ClientClosed(ProducerError):
    """The client was closed while the call was under way."""


class ChildFailed(ProducerError):
    """A process that a command runs for itself did not start or go on; the message has its reason.

    `is_wrong_input` says that it was given what it cannot use.
    """

    def __init__(self, message: str, *, is_wrong_input: bool = False) -> None:
        super().__init__(message)
        self.is_wrong_input = is_wrong_input


class WrongEventLoop(ProducerError, RuntimeError):
    """An asynchronous client was used in another event loop than the one that connected it."""


class ServerError(ProducerError):
    """Base of what is wrong with the server or the way to it.

    `code` is the server's word for it (`MISCONF`), or ours where it has none (`TIMEOUT`), empty
    where nothing was asked; `hint` says who can do what. `answers.py` has all of them.
    """

    def __init__(self, message: str, *, code: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class UrlInvalid(ServerError, ValueError):
    """The server URL has no meaning here; the message says what would."""


class ServerUnreachable(ServerError):
    """The server did not answer or take the call in time; the message holds its URL."""


class ServerUnsuitable(ServerError):
    """The server is too old, refuses, or is configured so that jobs could be lost."""


class ServerRefused(ServerUnsuitable):
    """The server refuses the credentials, the right, or the call itself; waiting does not help."""


class EmbeddedUnavailable(ServerError):
    """No embedded server could be started on this machine."""
