"""The asynchronous client: submit, stream, result, cancel.

It is one file because it is one face: each call checks, names the job and passes on, and the errors
of all of them are made here.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from tokenbus.producer.client.fork_guard import LoopGuard, Unsent, running_loop
from tokenbus.producer.client.pool_calls import PoolCalls
from tokenbus.producer.client.reading.client_channel import ClientChannel
from tokenbus.producer.client.reading.ended_channel import EndedChannel
from tokenbus.producer.client.reading.gathering import Gathering, Sources
from tokenbus.producer.client.reading.hub import SubscriptionHub
from tokenbus.producer.client.reading.lookup import Lookup
from tokenbus.producer.client.reading.reader import Reader
from tokenbus.producer.client.reading.silence_watch import SilenceWatch
from tokenbus.producer.client.submission import Job, Submission
from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress, check_name
from tokenbus.producer.contract.result import JobResult, ended_early
from tokenbus.producer.errors import JobUnknown, ProducerError, RequestInvalid, ServerError
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.scripts.completing import Retention
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.rights import UserRole, check_rights, may_hear
from tokenbus.producer.server.connection import open_server, retrying
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Iterable, Mapping, Sequence

    from tokenbus.producer.client.reading.event_stream import EventStream
    from tokenbus.producer.client.reading.gathering import Outcome
    from tokenbus.producer.contract.schema import JobRequest
    from tokenbus.producer.scripts.control import Webhook
    from tokenbus.producer.server.connection import Server
    from tokenbus.producer.server.url import ServerUrl

__all__ = ["AsyncClient", "Job"]

# How long a call that waits for results waits for the client channel first, without which it would
# have to look at the jobs.
_LISTEN_WAIT_S = 1.0


class AsyncClient(Unsent, PoolCalls):
    """A client of one pool; safe to share between the tasks of one event loop.

    It belongs to the process and the event loop that made it: in a fork of the one every call
    raises ClientClosed, and the parent's goes on undisturbed; in another loop every call raises
    WrongEventLoop. `Client` works in all of them.
    """

    def __init__(self, server: Server, pool: str, settings: ClientSettings) -> None:
        """Belong to the running event loop."""
        self._home = LoopGuard(self, running_loop())
        self._server = server
        self._settings = settings
        self._scripts = Scripts(
            server.redis, pool, timeout_s=settings.call_timeout_s, execute=server.direct.execute
        )
        lookup = Lookup(self._scripts)
        watch = SilenceWatch(lookup, settings.silence_s)
        self._hub = SubscriptionHub(
            server.redis,
            server.url,
            watch,
            settings.max_buffered_tokens,
            settings.call_timeout_s,
            check=self._home.check_loop,
        )
        self._client_channel = ClientChannel(
            self._hub, self._scripts.keys, watch, settings.max_buffered_tokens
        )
        self._reader = Reader(
            self._scripts, self._hub, server.url, settings, lookup, self._client_channel
        )
        retention = Retention(int(settings.log_ttl_s * 1000), int(settings.result_ttl_s * 1000))
        self._completion = JobCompletion(self._scripts, retention)
        self._submission = Submission(server, self._scripts, settings, self._client_channel)
        self._ended_channel = EndedChannel(self._hub, self._scripts.keys)
        self._sources = Sources(
            self._reader,
            lookup,
            self._client_channel,
            self._ended_channel,
            server.url,
            settings.retry_for_s,
            settings.silence_s,
        )

    @classmethod
    async def connect(
        cls, url: str | None = None, pool: str = "default", settings: ClientSettings | None = None
    ) -> Self:
        """Open the server (None: `TOKENBUS_REDIS_URL`, else the local one) and check it.

        Raises: UrlInvalid, EmbeddedUnavailable, ServerUnreachable, ServerUnsuitable; ServerRefused
        where the user may neither submit jobs nor read them.
        """
        running_loop()
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
            names = keys.client_channel(0, "~"), keys.of("ended")
            heard = await retrying(
                lambda: may_hear(server.redis, keys, *names), server.url, settings.retry_for_s
            )
        except BaseException:
            await server.close()
            raise
        client._client_channel.is_allowed, client._ended_channel.is_allowed = heard
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
    def num_shards(self) -> int:
        """Return how many shards of token logs the server has."""
        return self._server.num_shards

    @property
    def effective_url(self) -> str:
        """Return the URL under which other processes reach the same server."""
        return self._server.effective_url

    @overload
    async def submit(
        self,
        prompt: str | JobRequest | None = None,
        *,
        ticket: int = 0,
        weight: float | None = None,
        wait: Literal[False] = False,
        **fields: Any,
    ) -> Job: ...

    @overload
    async def submit(
        self,
        prompt: str | JobRequest | None = None,
        *,
        ticket: int = 0,
        weight: float | None = None,
        wait: Literal[True],
        timeout_s: float | None = None,
        **fields: Any,
    ) -> JobResult: ...

    async def submit(
        self,
        prompt: str | JobRequest | None = None,
        *,
        ticket: int = 0,
        weight: float | None = None,
        wait: bool = False,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Job | JobResult:
        """Queue a job: a prompt or a whole request, else the fields of `JobRequest` by name.

        Trying again is safe: the job id is drawn here, once per call. `ticket` is that of an
        earlier QueueFull for the same request, `weight` that of the tenant (None: as the settings
        have it). With `wait` it returns the job's result, which costs
        one round trip to the server.
        Raises: RequestInvalid, QueueFull, IdempotencyConflict, DeadlineUnmeetable,
        ServerUnreachable, ServerRefused; with `wait` what `result` raises, after the job was
        accepted.
        """
        self._home.check_loop()
        if timeout_s is not None and not wait:
            raise RequestInvalid("timeout_s", "limits a wait; say wait=True")
        new = self._submission.prepare(prompt, fields, weight=weight)
        job = await self._submission.one(new, ticket, _LISTEN_WAIT_S if wait else 0)
        return await self.result(job, timeout_s) if wait else job

    async def submit_many(
        self,
        requests: Iterable[JobRequest | Mapping[str, Any]],
        *,
        reserved_ids: Sequence[str] = (),
        weight: float | None = None,
    ) -> list[Job | ProducerError]:
        """Queue many jobs, 256 or 512 KiB a round trip; each is accepted or refused on its own.

        The answers stand in the order of the requests, whatever one of them is: one that is no
        request is answered by RequestInvalid. `results` takes them as they are. Where the server
        goes away in the middle, the jobs that it did not answer are answered by that error; some of
        them may have been accepted, and submitting them again under their ids or idempotency keys
        is safe. `reserved_ids` are for services of the pool, one a request: names such as a cron's,
        that the schema of no request lets through. `weight` is that of the tenants (None: as the
        settings say).
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
        for part in self._submission.parts(requests, reserved_ids, answers, weight):
            try:
                answered = await self._submission.many([new for _, new in part], _LISTEN_WAIT_S)
            except ServerError as error:
                if not has_answered:
                    raise
                return [error if answer is None else answer for answer in answers]
            has_answered = True
            for (number, _), answer in zip(part, answered, strict=True):
                answers[number] = answer
        return [answer for answer in answers if answer is not None]

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
        outcome: Outcome
        if self._client_channel.keeps(address):
            gathering = Gathering(self._sources, [address], timeout_s)
            [(_, outcome)] = [each async for each in gathering.outcomes()]
        else:
            result = await self._reader.result(address.job_id, timeout_s, address.tenant)
            outcome = ended_early(result) or result
        if isinstance(outcome, JobResult):
            return outcome
        raise outcome

    @overload
    def results(
        self,
        jobs: Iterable[str | Job | ProducerError],
        timeout_s: float | None = None,
        *,
        as_completed: Literal[False] = False,
        tenant: str = DEFAULT_TENANT,
    ) -> Coroutine[Any, Any, list[Outcome]]: ...

    @overload
    def results(
        self,
        jobs: Iterable[str | Job | ProducerError],
        timeout_s: float | None = None,
        *,
        as_completed: Literal[True],
        tenant: str = DEFAULT_TENANT,
    ) -> AsyncGenerator[tuple[int, Outcome], None]: ...

    def results(
        self,
        jobs: Iterable[str | Job | ProducerError],
        timeout_s: float | None = None,
        *,
        as_completed: bool = False,
        tenant: str = DEFAULT_TENANT,
    ) -> Coroutine[Any, Any, list[Outcome]] | AsyncGenerator[tuple[int, Outcome], None]:
        """Wait for the ends of many jobs: `await` the list of what became of each, in their order.

        `jobs` are ids of the tenant, jobs, or the answers of `submit_many`, of which the errors
        stand for themselves. What became of a job is its result, or the error that `result` would
        raise, ResultTimeout for those that have not ended `timeout_s` after the call; no job
        spoils another's. With `as_completed` it is an asynchronous iterator of (index in `jobs`,
        what became of it), soonest first.

        Jobs that this client has submitted cost no call each; others are looked up 128 a call.
        Raises: RequestInvalid for what names no job; ClientClosed, WrongEventLoop.
        """
        self._home.check_loop()
        given = [
            each if isinstance(each, ProducerError) else _address(each, tenant) for each in jobs
        ]
        gathered = self._gathered(given, timeout_s)
        return gathered if as_completed else _in_order(gathered, len(given))

    async def _gathered(
        self, given: Sequence[JobAddress | ProducerError], timeout_s: float | None
    ) -> AsyncGenerator[tuple[int, Outcome], None]:
        """Yield what became of each, with its index; a job that is given twice is so twice."""
        numbers: dict[JobAddress, list[int]] = {}
        for number, each in enumerate(given):
            if isinstance(each, ProducerError):
                yield number, each
            else:
                numbers.setdefault(each, []).append(number)
        gathering = Gathering(self._sources, list(numbers), timeout_s)
        async with aclosing(gathering.outcomes()) as outcomes:
            async for address, outcome in outcomes:
                for number in numbers[address]:
                    yield number, outcome

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


def _address(job: str | Job, tenant: str) -> JobAddress:
    """Name a job as the caller does; one that was returned by a submit knows its tenant.

    Raises: RequestInvalid for what is no text that a key can carry.
    """
    if isinstance(job, Job):
        return JobAddress(job.job_id, job.tenant)
    check_name("job_id", job)
    check_name("tenant", tenant)
    return JobAddress(job, tenant)


async def _in_order(
    gathered: AsyncGenerator[tuple[int, Outcome], None], num_jobs: int
) -> list[Outcome]:
    """Return what became of each job by its index."""
    found = dict([each async for each in gathered])
    return [found[number] for number in range(num_jobs)]
