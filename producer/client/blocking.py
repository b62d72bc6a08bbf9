"""The blocking client: the same calls without an event loop, in any thread, after a fork."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from tokenbus.producer.client.async_client import AsyncClient, Job
from tokenbus.producer.client.blocking_stream import BlockingStream
from tokenbus.producer.client.fork_guard import ForkGuard, Unsent
from tokenbus.producer.client.job_list import LISTED_STATES
from tokenbus.producer.client.loop_thread import LoopThread
from tokenbus.producer.contract.address import DEFAULT_TENANT
from tokenbus.producer.errors import ClientClosed
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

    from tokenbus.producer.client.job_list import JobList
    from tokenbus.producer.client.pool_status import PoolStatus
    from tokenbus.producer.client.reading.gathering import Outcome
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.contract.result import JobResult
    from tokenbus.producer.contract.schema import JobRequest
    from tokenbus.producer.errors import ProducerError
    from tokenbus.producer.scripts.control import Webhook

T = TypeVar("T")


class _Portal:
    """The event loop in a thread of its own, with the asynchronous client that lives there."""

    def __init__(self, url: str | None, pool: str, settings: ClientSettings) -> None:
        self.home = ForkGuard(self)
        self._thread = LoopThread.join()
        self.loop = self._thread.loop
        try:
            self.client = self.run(AsyncClient.connect(url, pool, settings))
        except BaseException:
            self._thread.leave()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the loop and wait; an interrupted wait cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except CancelledError:
            raise ClientClosed("the client was closed during the call") from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Close the client and end the thread."""
        try:
            self.run(self.client.close())
            if self._thread.is_last:
                self.run(_end_tasks())
        finally:
            self._thread.leave()


async def _end_tasks() -> None:
    """Cancel what still runs in the loop, so that every thread that waits for it is told."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _in_loop(call: Callable[[], T]) -> T:
    """Make a call that is no coroutine in the client's loop, where the client checks who calls."""
    return call()


class Client(Unsent):
    """`AsyncClient` for blocking code, with the same names; safe to share between threads.

    A process that was forked from one with an open client (gunicorn's preload) connects anew on
    its first call, except to a private embedded server, which belongs to one process.
    """

    def __init__(
        self, url: str | None = None, pool: str = "default", settings: ClientSettings | None = None
    ) -> None:
        self._url = url
        self._pool = pool
        self._settings = settings or ClientSettings()
        self._lock = threading.Lock()
        self._lock_pid = os.getpid()
        self._closed = False
        self._open_portal: _Portal | None = _Portal(url, pool, self._settings)

    @classmethod
    def connect(
        cls, url: str | None = None, pool: str = "default", settings: ClientSettings | None = None
    ) -> Self:
        """Open the server and check it. Raises: as `AsyncClient.connect`."""
        return cls(url, pool, settings)

    @overload
    def submit(
        self,
        prompt: str | JobRequest | None = None,
        *,
        ticket: int = 0,
        wait: Literal[False] = False,
        **fields: Any,
    ) -> Job: ...

    @overload
    def submit(
        self,
        prompt: str | JobRequest | None = None,
        *,
        ticket: int = 0,
        wait: Literal[True],
        timeout_s: float | None = None,
        **fields: Any,
    ) -> JobResult: ...

    def submit(
        self, prompt: str | JobRequest | None = None, *, wait: bool = False, **fields: Any
    ) -> Job | JobResult:
        """Queue a job; with `wait` return its result. Raises: as `AsyncClient.submit`."""
        portal = self._portal()
        # The overloads of the asynchronous client tell the two apart by the literal.
        call: Any = portal.client.submit
        answer: Job | JobResult = portal.run(call(prompt, wait=wait, **fields))
        return answer

    def submit_many(
        self, requests: Iterable[JobRequest | Mapping[str, Any]]
    ) -> list[Job | ProducerError]:
        """Queue many jobs, each accepted or refused on its own. Raises: as the async client."""
        portal = self._portal()
        return portal.run(portal.client.submit_many(requests))

    def stream(
        self, job_id: str | Job, cursor: int = 0, tenant: str = DEFAULT_TENANT
    ) -> Iterator[Event]:
        """Yield the job's events after `cursor`. Raises: as `AsyncClient.stream`."""
        portal = self._portal()
        yield from BlockingStream(portal.client.stream(job_id, cursor, tenant), portal.loop)

    def result(
        self, job_id: str | Job, timeout_s: float | None = None, tenant: str = DEFAULT_TENANT
    ) -> JobResult:
        """Wait for the end of a job. Raises: as `AsyncClient.result`."""
        portal = self._portal()
        return portal.run(portal.client.result(job_id, timeout_s, tenant))

    @overload
    def results(
        self,
        jobs: Iterable[str | Job | ProducerError],
        timeout_s: float | None = None,
        *,
        as_completed: Literal[False] = False,
        tenant: str = DEFAULT_TENANT,
    ) -> list[Outcome]: ...

    @overload
    def results(
        self,
        jobs: Iterable[str | Job | ProducerError],
        timeout_s: float | None = None,
        *,
        as_completed: Literal[True],
        tenant: str = DEFAULT_TENANT,
    ) -> Iterator[tuple[int, Outcome]]: ...

    def results(
        self,
        jobs: Iterable[str | Job | ProducerError],
        timeout_s: float | None = None,
        *,
        as_completed: bool = False,
        tenant: str = DEFAULT_TENANT,
    ) -> list[Outcome] | Iterator[tuple[int, Outcome]]:
        """Wait for the ends of many jobs: what became of each, in order or as they come.

        Raises: as `AsyncClient.results`.
        """
        portal, given = self._portal(), list(jobs)
        results = portal.client.results
        if as_completed:
            gathered = portal.run(
                _in_loop(lambda: results(given, timeout_s, as_completed=True, tenant=tenant))
            )
            return iter(BlockingStream(gathered, portal.loop))
        return portal.run(portal.run(_in_loop(lambda: results(given, timeout_s, tenant=tenant))))

    def cancel(self, job_id: str | Job, tenant: str = DEFAULT_TENANT) -> bool:
        """Cancel a job; False if it had ended before. Raises: as `AsyncClient.cancel`."""
        portal = self._portal()
        return portal.run(portal.client.cancel(job_id, tenant))

    def webhook(self, job_id: str | Job, tenant: str = DEFAULT_TENANT) -> Webhook | None:
        """Return the job's webhook with every try. Raises: as `AsyncClient.webhook`."""
        portal = self._portal()
        return portal.run(portal.client.webhook(job_id, tenant))

    def list_jobs(
        self,
        *,
        tenant: str | None = None,
        states: Sequence[str] = LISTED_STATES,
        limit: int = 100,
    ) -> JobList:
        """List jobs that have not ended. Raises: as `AsyncClient.list_jobs`."""
        portal = self._portal()
        return portal.run(portal.client.list_jobs(tenant=tenant, states=states, limit=limit))

    def status(self) -> PoolStatus:
        """Return the state of the pool. Raises: as `AsyncClient.status`."""
        portal = self._portal()
        return portal.run(portal.client.status())

    def pause(self) -> None:
        """Let workers take no more jobs until `resume`. Raises: as `AsyncClient.pause`."""
        portal = self._portal()
        portal.run(portal.client.pause())

    def resume(self) -> None:
        """Let workers take jobs again. Raises: as `AsyncClient.resume`."""
        portal = self._portal()
        portal.run(portal.client.resume())

    def close(self) -> None:
        """Close all connections. Safe to repeat.

        At the end of the interpreter they end with the process: its other threads have stopped.
        """
        self._closed = True
        portal, self._open_portal = self._open_portal, None
        if portal is not None and portal.home.is_here and not sys.is_finalizing():
            portal.close()

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the client."""
        self.close()

    def _portal(self) -> _Portal:
        """Return this process's portal; a fork has the parent's object but not its thread."""
        if self._closed:
            raise ClientClosed("the client is closed")
        if sys.is_finalizing():
            raise ClientClosed("the interpreter ends, and has stopped the client's thread")
        pid = os.getpid()
        if self._lock_pid != pid:
            self._lock, self._lock_pid = threading.Lock(), pid
        with self._lock:
            if self._open_portal is None or not self._open_portal.home.is_here:
                self._open_portal = _Portal(self._url, self._pool, self._settings)
            return self._open_portal
