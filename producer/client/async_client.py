"""The asynchronous client: submit, stream, result, cancel.

It is one file because it is one face: each call checks, names the job and passes on, and the errors
of all of them are made here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from tokenbus.producer.client.fork_guard import LoopGuard
from tokenbus.producer.client.hub import SubscriptionHub
from tokenbus.producer.client.pool_calls import PoolCalls
from tokenbus.producer.client.reader import Reader
from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress, check_name
from tokenbus.producer.contract.events import FINISHED_REASONS
from tokenbus.producer.contract.new_job import NewJob, as_request, new_job
from tokenbus.producer.contract.result import JobCancelled, JobExpired, JobFailed
from tokenbus.producer.errors import (
    DeadlineUnmeetable,
    IdempotencyConflict,
    JobUnknown,
    ProducerError,
    QueueFull,
    RequestInvalid,
    ServerError,
)
from tokenbus.producer.scripts import Bounds, Scripts
from tokenbus.producer.scripts.completion import JobCompletion, Retention
from tokenbus.producer.scripts.replies import JobState, Refused, Submitted
from tokenbus.producer.scripts.rights import UserRole, check_rights
from tokenbus.producer.server.connection import open_server, retrying
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tokenbus.producer.client.event_stream import EventStream
    from tokenbus.producer.contract.result import JobResult
    from tokenbus.producer.contract.schema import JobRequest
    from tokenbus.producer.scripts.control import Webhook
    from tokenbus.producer.server.connection import Server
    from tokenbus.producer.server.url import ServerUrl

# One round trip of `submit_many`; the server answers others in between.
MAX_SUBMITS = 256
# The same for long prompts: writing the most keeps others from the server for about 10 ms. Each has
# up to twice the one before, so that workers begin at once.
FIRST_SUBMIT_BYTES, MAX_SUBMIT_BYTES = 128 * 1024, 512 * 1024


@dataclass(frozen=True, slots=True)
class Job:
    """An accepted job, and where it stood at that moment; may be given in place of id and tenant.

    `created` is false if it was known from an earlier submit. `eta_s` is when its turn comes by
    the measured drain rate, None as long as none was measured. `channel` is where any Redis client
    may listen to its events.
    """

    job_id: str
    created: bool
    state: JobState
    jobs_ahead: int
    tokens_ahead: int
    eta_s: float | None
    channel: str
    tenant: str = DEFAULT_TENANT


class AsyncClient(PoolCalls):
    """A client of one pool; safe to share between the tasks of one event loop.

    It belongs to the process and the event loop that made it: in a fork of the one every call
    raises ClientClosed, and the parent's goes on undisturbed; in another loop every call raises
    WrongEventLoop. `Client` works in all of them.
    """

    def __init__(self, server: Server, pool: str, settings: ClientSettings) -> None:
        """Belong to the running event loop."""
        self._home = LoopGuard(self, asyncio.get_running_loop())
        self._server = server
        self._settings = settings
        self._scripts = Scripts(server.redis, pool, timeout_s=settings.call_timeout_s)
        self._hub = SubscriptionHub(
            server.redis,
            server.url,
            settings.max_buffered_tokens,
            settings.call_timeout_s,
            home=self._home,
        )
        self._reader = Reader(self._scripts, self._hub, server.url, settings)
        retention = Retention(int(settings.log_ttl_s * 1000), int(settings.result_ttl_s * 1000))
        self._completion = JobCompletion(self._scripts, retention)

    @classmethod
    async def connect(
        cls, url: str | None = None, pool: str = "default", settings: ClientSettings | None = None
    ) -> Self:
        """Open the server (None: `TOKENBUS_REDIS_URL`, else the local one) and check it.

        Raises: UrlInvalid, EmbeddedUnavailable, ServerUnreachable, ServerUnsuitable; ServerRefused
        where the user may neither submit jobs nor read them.
        """
        settings = settings or ClientSettings()
        server = await open_server(
            url or settings.redis_url,
            retry_for_s=settings.retry_for_s,
            call_timeout_s=settings.call_timeout_s,
        )
        try:
            client = cls(server, pool, settings)
            keys, shown_url = client.scripts.keys, str(server.url)
            await retrying(
                lambda: check_rights(
                    server.redis, keys, UserRole.PRODUCER, UserRole.READER, shown_url=shown_url
                ),
                server.url,
                settings.retry_for_s,
            )
        except BaseException:
            await server.close()
            raise
        return client

    @property
    def scripts(self) -> Scripts:
        """Return the typed calls below this client."""
        return self._scripts

    @property
    def url(self) -> ServerUrl:
        """Return the server's URL as given; printed, it hides the password."""
        return self._server.url

    @property
    def effective_url(self) -> str:
        """Return the URL under which other processes reach the same server."""
        return self._server.effective_url

    async def submit(
        self, prompt: str | JobRequest | None = None, *, ticket: int = 0, **fields: Any
    ) -> Job:
        """Queue a job: a prompt or a whole request, else the fields of `JobRequest` by name.

        Trying again is safe: the job id is drawn here, once per call. `ticket` is that of an
        earlier QueueFull for the same request.
        Raises: RequestInvalid, QueueFull, IdempotencyConflict, DeadlineUnmeetable,
        ServerUnreachable, ServerRefused.
        """
        self._home.check_loop()
        new = self._prepare(prompt, fields)
        tries = 0

        async def call() -> Submitted | Refused:
            nonlocal tries
            tries += 1
            return await self._scripts.queue.submit(new, self._bounds, ticket=ticket)

        reply = await retrying(call, self._server.url, self._settings.retry_for_s)
        if isinstance(reply, Refused):
            raise self._refusal(new, reply)
        return self._job(new, reply, retried=tries > 1)

    async def submit_many(
        self,
        requests: Iterable[JobRequest | Mapping[str, Any]],
        *,
        reserved_ids: Sequence[str] = (),
    ) -> list[Job | ProducerError]:
        """Queue many jobs, 256 or 512 KiB a round trip; each is accepted or refused on its own.

        The answers stand in the order of the requests, whatever one of them is: one that is no
        request is answered by RequestInvalid. Where the server goes away in the middle, the jobs
        that it did not answer are answered by that error; some of them may have been
        accepted, and submitting them again under their ids or idempotency keys is safe.
        `reserved_ids` are for services of the pool, one a request: names such as a cron's, that the
        schema of no request lets through.
        Raises: ServerUnreachable or ServerRefused where the server accepted and refused nothing at
        all; RequestInvalid if the numbers of requests and reserved ids differ.
        """
        self._home.check_loop()
        requests = list(requests)
        if reserved_ids and len(reserved_ids) != len(requests):
            raise RequestInvalid(
                "reserved_ids", f"{len(reserved_ids)} ids for {len(requests)} requests"
            )
        answers: list[Job | ProducerError | None] = [None] * len(requests)
        has_answered = False
        for part in self._parts(requests, reserved_ids, answers):
            jobs = [new for _, new in part]
            tries = 0

            async def call(jobs: list[NewJob] = jobs) -> list[Submitted | Refused]:
                nonlocal tries
                tries += 1
                return await self._scripts.queue.submit_many(jobs, self._bounds)

            try:
                replies = await retrying(call, self._server.url, self._settings.retry_for_s)
            except ServerError as error:
                if not has_answered:
                    raise
                return [error if answer is None else answer for answer in answers]
            has_answered = True
            for (number, new), reply in zip(part, replies, strict=True):
                answers[number] = (
                    self._refusal(new, reply)
                    if isinstance(reply, Refused)
                    else self._job(new, reply, retried=tries > 1)
                )
        return [answer for answer in answers if answer is not None]

    def _parts(
        self,
        requests: Sequence[JobRequest | Mapping[str, Any]],
        reserved_ids: Sequence[str],
        answers: list[Job | ProducerError | None],
    ) -> Iterator[list[tuple[int, NewJob]]]:
        """Prepare requests and yield what one round trip takes; answer those that are invalid.

        The first are under way before the last are prepared.
        """
        part: list[tuple[int, NewJob]] = []
        num_bytes, most_bytes = 0, FIRST_SUBMIT_BYTES
        for number, request in enumerate(requests):
            try:
                reserved_id = reserved_ids[number] if reserved_ids else ""
                new = self._prepare(request, {}, reserved_id)
            except ProducerError as error:
                answers[number] = error
                continue
            if part and num_bytes + len(new.request) > most_bytes:
                yield part
                part, num_bytes, most_bytes = [], 0, min(2 * most_bytes, MAX_SUBMIT_BYTES)
            part.append((number, new))
            num_bytes += len(new.request)
            if len(part) == MAX_SUBMITS:
                yield part
                part, num_bytes = [], 0
        if part:
            yield part

    def stream(
        self, job_id: str | Job, cursor: int = 0, tenant: str = DEFAULT_TENANT
    ) -> EventStream:
        """Yield the events of a tenant's job after `cursor`, the terminal one last.

        A job that is another tenant's is as unknown as one that never was.

        `event.cursor` of the last event handled resumes the stream, here or in another process,
        for as long as the result is kept.
        Raises: CursorInvalid, JobUnknown, JobForgotten, JobLost, ServerUnreachable, ServerRefused,
        ClientClosed.
        """
        self._home.check()
        address = _address(job_id, tenant)
        return self._reader.stream(address.job_id, cursor, address.tenant)

    async def result(
        self, job_id: str | Job, timeout_s: float | None = None, tenant: str = DEFAULT_TENANT
    ) -> JobResult:
        """Wait for the end of a tenant's job and return all that it generated.

        Raises: JobFailed, JobCancelled, JobExpired (each holds the result so far), ResultTimeout,
        and what `stream` raises.
        """
        self._home.check_loop()
        address = _address(job_id, tenant)
        result = await self._reader.result(address.job_id, timeout_s, address.tenant)
        job_id, reason, error = result.job_id, result.finish.reason, result.finish.error
        if reason in FINISHED_REASONS:
            return result
        if reason == "cancelled":
            raise JobCancelled(f"job {job_id} was cancelled", result)
        if reason == "expired":
            raise JobExpired(f"the deadline of job {job_id} passed", result)
        if error is None:
            raise JobFailed(reason, None, f"job {job_id} ended as {reason}", result)
        raise JobFailed(error.code, error.field, error.message, result)

    async def cancel(self, job_id: str | Job, tenant: str = DEFAULT_TENANT) -> bool:
        """Cancel a tenant's job wherever it is; False if it had ended before.

        A running job ends within moments; its stream tells.
        Raises: JobUnknown, ServerUnreachable, ServerRefused.
        """
        self._home.check_loop()
        address = _address(job_id, tenant)
        status = await retrying(
            lambda: self._completion.cancel(address.text, address.tenant),
            self._server.url,
            self._settings.retry_for_s,
        )
        if status == "unknown":
            raise JobUnknown(address.job_id)
        return status not in ("done", "over")

    async def webhook(self, job_id: str | Job, tenant: str = DEFAULT_TENANT) -> Webhook | None:
        """Return the webhook of a tenant's job with every try; None before the end or without one.

        Raises: ServerUnreachable, ServerRefused.
        """
        self._home.check_loop()
        control, settings = self._scripts.control, self._settings
        address = _address(job_id, tenant)
        return await retrying(
            lambda: control.webhook(address.text, address.tenant),
            self._server.url,
            settings.retry_for_s,
        )

    async def close(self) -> None:
        """Close all connections; an embedded server ends with its last client.

        In a fork it does nothing: the connections are the parent's. Nor is there anything to close
        where the client's event loop was.
        Raises: WrongEventLoop in another loop while its own is open.
        """
        if not self._home.is_here or self._home.has_ended:
            return
        self._home.check_loop()
        await self._hub.close()
        await self._server.close()

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the client."""
        await self.close()

    @property
    def _bounds(self) -> Bounds:
        settings = self._settings
        return Bounds(settings.max_tenant_tokens, settings.max_pool_tokens, settings.refuse_late)

    def _prepare(
        self,
        given: str | JobRequest | Mapping[str, Any] | None,
        fields: dict[str, Any],
        reserved_id: str = "",
    ) -> NewJob:
        """Check a request, draw what it leaves open and weigh it. Raises: RequestInvalid."""
        try:
            request = as_request(given, fields)
            return new_job(
                request,
                self._settings.tenant_weights.get(request.tenant, 1.0),
                self._server.num_shards,
                reserved_id=reserved_id,
                groups=self._settings.cache_groups,
            )
        except ProducerError:
            raise
        except Exception as error:
            # The job boundary: an object of the caller's that raises when it is read or written.
            raise RequestInvalid("job", f"cannot be read: {type(error).__name__}") from error

    def _job(self, new: NewJob, reply: Submitted, *, retried: bool) -> Job:
        place = reply.place
        return Job(
            job_id=JobAddress.parse(place.job_id).job_id,
            created=reply.created or (retried and place.job_id == new.job_id),
            state=place.state,
            jobs_ahead=place.jobs_ahead,
            tokens_ahead=place.tokens_ahead,
            eta_s=None if place.eta_ms is None else place.eta_ms / 1000,
            channel=self._scripts.keys.channel(place.job_id),
            tenant=new.tenant,
        )

    def _refusal(self, new: NewJob, reply: Refused) -> ProducerError:
        """Turn a refusal into the error that says what to do."""
        if reply.status == "conflict":
            return IdempotencyConflict(
                f"job {JobAddress.parse(new.job_id).job_id}: its id or idempotency key belongs to a"
                " different request"
            )
        if reply.status == "late":
            return DeadlineUnmeetable(reply.eta_ms / 1000, (new.deadline_ms or 0) / 1000)
        return QueueFull(
            reply.status.removeprefix("full_"),
            reply.queued_tokens,
            reply.max_tokens,
            reply.retry_after_ms / 1000,
            reply.ticket,
        )


def _address(job: str | Job, tenant: str) -> JobAddress:
    """Name a job as the caller does; one that was returned by a submit knows its tenant.

    Raises: RequestInvalid for what is no text that a key can carry.
    """
    if isinstance(job, Job):
        return JobAddress(job.job_id, job.tenant)
    check_name("job_id", job)
    check_name("tenant", tenant)
    return JobAddress(job, tenant)
