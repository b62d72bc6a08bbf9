"""Submission: requests become jobs of the queue, and the queue's answers jobs or errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress
from tokenbus.producer.contract.keys import shard_of
from tokenbus.producer.contract.new_job import NewJob, as_request, new_job
from tokenbus.producer.errors import (
    DeadlineUnmeetable,
    IdempotencyConflict,
    ProducerError,
    QueueFull,
    RequestInvalid,
)
from tokenbus.producer.scripts import Bounds
from tokenbus.producer.scripts.replies import Refused
from tokenbus.producer.server.connection import retrying
from tokenbus.producer.telemetry.tracing import current_traceparent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokenbus.producer.client.reading.client_channel import ClientChannel
    from tokenbus.producer.contract.schema import JobRequest
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.replies import JobState, Submitted
    from tokenbus.producer.server.connection import Server
    from tokenbus.producer.settings import ClientSettings

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


class Submission:
    """Submits what one client is asked to, and has it heard on the client's channel."""

    def __init__(
        self,
        server: Server,
        scripts: Scripts,
        settings: ClientSettings,
        client_channel: ClientChannel,
    ) -> None:
        self._server = server
        self._scripts = scripts
        self._settings = settings
        self._client_channel = client_channel

    def prepare(
        self,
        given: str | JobRequest | Mapping[str, Any] | None,
        fields: dict[str, Any],
        reserved_id: str = "",
        weight: float | None = None,
    ) -> NewJob:
        """Check a request, draw what it leaves open and weigh it. Raises: RequestInvalid."""
        try:
            request = as_request(given, fields)
            traced = current_traceparent() if request.traceparent is None else None
            if traced is not None:
                request = request.model_copy(update={"traceparent": traced})
            if weight is None:
                weight = self._settings.tenant_weights.get(request.tenant, 1.0)
            return new_job(
                request,
                weight,
                self._server.num_shards,
                reserved_id=reserved_id,
                groups=self._settings.cache_groups,
                listen=self._client_channel.listen,
            )
        except ProducerError:
            raise
        except Exception as error:
            # The job boundary: an object of the caller's that raises when it is read or written.
            raise RequestInvalid("job", f"cannot be read: {type(error).__name__}") from error

    async def one(self, new: NewJob, ticket: int, listen_wait_s: float) -> Job:
        """Queue a job. Raises: its refusal, ServerUnreachable, ServerRefused."""
        tries = 0

        async def call() -> Submitted | Refused:
            nonlocal tries
            tries += 1
            return await self._scripts.queue.submit(new, self._bounds, ticket=ticket)

        await self._listen([new], listen_wait_s)
        reply = await retrying(call, self._server.url, self._settings.retry_for_s)
        answer = self._answer(new, reply, retried=tries > 1)
        if isinstance(answer, ProducerError):
            raise answer
        return answer

    async def many(self, jobs: Sequence[NewJob], listen_wait_s: float) -> list[Job | ProducerError]:
        """Queue the jobs of one round trip. Raises: ServerUnreachable, ServerRefused."""
        tries = 0

        async def call() -> list[Submitted | Refused]:
            nonlocal tries
            tries += 1
            return await self._scripts.queue.submit_many(jobs, self._bounds)

        await self._listen(jobs, listen_wait_s)
        replies = await retrying(call, self._server.url, self._settings.retry_for_s)
        retried = tries > 1
        return [
            self._answer(new, reply, retried=retried)
            for new, reply in zip(jobs, replies, strict=True)
        ]

    def parts(
        self,
        requests: Sequence[JobRequest | Mapping[str, Any]],
        reserved_ids: Sequence[str],
        answers: list[Job | ProducerError | None],
        weight: float | None = None,
    ) -> Iterator[list[tuple[int, NewJob]]]:
        """Prepare requests and yield what one round trip takes; answer those that are invalid.

        The first are under way before the last are prepared.
        """
        part: list[tuple[int, NewJob]] = []
        num_bytes, most_bytes = 0, FIRST_SUBMIT_BYTES
        for number, request in enumerate(requests):
            try:
                reserved_id = reserved_ids[number] if reserved_ids else ""
                new = self.prepare(request, {}, reserved_id, weight)
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

    async def _listen(self, jobs: Sequence[NewJob], wait_s: float) -> None:
        """Listen to the shards of jobs before they are submitted, and expect the jobs."""
        channel = self._client_channel
        await channel.begin({shard_of(new.job_id) for new in jobs}, wait_s)
        for new in jobs:
            channel.expect(new)

    @property
    def _bounds(self) -> Bounds:
        settings = self._settings
        return Bounds(settings.max_tenant_tokens, settings.max_pool_tokens, settings.refuse_late)

    def _answer(
        self, new: NewJob, reply: Submitted | Refused, *, retried: bool
    ) -> Job | ProducerError:
        """Turn an answer of the queue into the job, or the error that says what to do."""
        if isinstance(reply, Refused):
            self._client_channel.drop(new.job_id)
            return _refusal(new, reply)
        place = reply.place
        is_created = reply.created or (retried and place.job_id == new.job_id)
        if not is_created:
            # Somebody else listens to it, or nobody does.
            self._client_channel.drop(new.job_id)
        return Job(
            job_id=JobAddress.parse(place.job_id).job_id,
            created=is_created,
            state=place.state,
            jobs_ahead=place.jobs_ahead,
            tokens_ahead=place.tokens_ahead,
            eta_s=None if place.eta_ms is None else place.eta_ms / 1000,
            channel=self._scripts.keys.channel(place.job_id),
            tenant=new.tenant,
        )


def _refusal(new: NewJob, reply: Refused) -> ProducerError:
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
