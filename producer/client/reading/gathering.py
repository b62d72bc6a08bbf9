"""Gathering: the ends of many jobs at once, without a stream, a task or a timer for each.

Jobs that this client has submitted tell their end, and mostly the whole result, on the client
channel; of others the pool's channel of complete jobs tells when their result can be read. Both
only save time: a job that was silent for a while is looked at, and nothing rests on a message.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING

from tokenbus.producer.contract.result import JobResult, ended_early
from tokenbus.producer.errors import (
    ClientClosed,
    ProducerError,
    ResultTimeout,
    SchemaMismatch,
    ServerError,
)
from tokenbus.producer.server.connection import retrying

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
    from typing import TypeVar

    from tokenbus.producer.client.reading.client_channel import ClientChannel
    from tokenbus.producer.client.reading.ended_channel import EndedChannel
    from tokenbus.producer.client.reading.kept_job import KeptJob
    from tokenbus.producer.client.reading.lookup import Lookup
    from tokenbus.producer.client.reading.reader import Reader
    from tokenbus.producer.contract.address import JobAddress
    from tokenbus.producer.server.url import ServerUrl

    T = TypeVar("T")

# What became of a job: all that it generated, or why there is no such result.
Outcome = JobResult | ProducerError

# Jobs of one round trip of reading.
_NUM_TOGETHER = 128
# A subscription that takes longer is not waited for: looking does too.
_LISTEN_WAIT_S = 1.0
# What is to be found out about a job takes a few calls; one that runs on is looked at again.
_LOOK_UP_S = 3.0
_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Sources:
    """Where outcomes come from, and how patiently."""

    reader: Reader
    lookup: Lookup
    client_channel: ClientChannel
    ended_channel: EndedChannel
    url: ServerUrl
    retry_for_s: float
    silence_s: float


class Gathering:
    """The outcomes of some jobs, each handed over once, as they come."""

    def __init__(
        self, sources: Sources, addresses: Sequence[JobAddress], timeout_s: float | None
    ) -> None:
        self._sources = sources
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else monotonic() + timeout_s
        # By the text of the address: jobs without an outcome, and when each gave a sign of life.
        self._open: dict[str, JobAddress] = {address.text: address for address in addresses}
        self._seen_at: dict[str, float] = {}
        self._kept: dict[str, KeptJob] = {}
        self._ready: deque[tuple[JobAddress, Outcome]] = deque()
        # Jobs whose stored result is to be read, true where there has to be one, and jobs of which
        # more has to be known.
        self._to_read: dict[str, bool] = {}
        self._to_look_up: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._error: Exception | None = None

    async def outcomes(self) -> AsyncGenerator[tuple[JobAddress, Outcome], None]:
        """Yield each job with its outcome. Raises: ClientClosed, WrongEventLoop."""
        try:
            await self._begin()
            while self._open or self._ready:
                while self._ready:
                    yield self._ready.popleft()
                if self._open:
                    await self._go_on()
        finally:
            self._release()

    async def _begin(self) -> None:
        """Take what the client channel has of the jobs; look at the others."""
        channel = self._sources.client_channel
        for text, address in list(self._open.items()):
            job = channel.collect(address, self)
            if job is None:
                self._seen_at[text] = _NEVER
            elif job.end is not None:
                self.ended(job)
            else:
                self._kept[text] = job
                if job.has_hole:
                    self._to_read[text] = False
        if self._seen_at:
            await self._join()
            self._to_read |= dict.fromkeys(self._seen_at, False)

    async def _go_on(self) -> None:
        """Take one step towards the next outcomes."""
        if self._error is not None:
            raise self._error
        left_s = None if self._deadline is None else self._deadline - monotonic()
        try:
            async with asyncio.timeout(left_s):
                if self._to_read:
                    await self._read()
                elif self._to_look_up:
                    await self._look_up()
                elif not await self._look():
                    await self._wait()
        except TimeoutError:
            for text, address in list(self._open.items()):
                late = f"job {address.job_id} did not end within {self._timeout_s:g} s"
                self._finish(text, ResultTimeout(f"{late}; it goes on"))
        except ServerError as error:
            for text in list(self._open):
                self._finish(text, error)

    async def _wait(self) -> None:
        """Wait until something was heard, or it is time to look."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._sources.silence_s / 2):
                await self._wake.wait()

    async def _look(self) -> bool:
        """Ask for the state of jobs that were silent; tell whether there are any."""
        oldest = monotonic() - self._sources.silence_s
        silent = [text for text in self._open if self._last_seen(text) < oldest]
        if not silent:
            return False
        if self._kept and not self._sources.client_channel.is_proven:
            # Workers of earlier releases publish what is complete, though not to this client.
            await self._join()
        part = silent[:_NUM_TOGETHER]
        states = await self._asked(lambda: self._sources.lookup.states(part))
        now = monotonic()
        for text, state in zip(part, states, strict=True):
            self._seen_at[text] = now
            if state is None:
                self._to_look_up[text] = None
            elif state == b"done":
                self._to_read[text] = True
        return True

    async def _join(self) -> None:
        """Hear which jobs of the pool are complete."""
        left_s = _LISTEN_WAIT_S if self._deadline is None else self._deadline - monotonic()
        await self._sources.ended_channel.join(self, min(left_s, _LISTEN_WAIT_S))

    def _last_seen(self, text: str) -> float:
        job = self._kept.get(text)
        seen_at = self._seen_at.get(text, _NEVER)
        return seen_at if job is None else max(seen_at, job.heard_at)

    async def _read(self) -> None:
        """Read stored results; a job without one goes on, or is looked up if it has ended."""
        part = _some(self._to_read)
        values = await self._asked(lambda: self._sources.lookup.results(part))
        for text, value in zip(part, values, strict=True):
            is_over = self._to_read.pop(text)
            if text not in self._open:
                continue
            if value is not None:
                self._take_stored(text, value)
            elif is_over:
                self._to_look_up[text] = None

    def _take_stored(self, text: str, value: bytes) -> None:
        address = self._open[text]
        try:
            result = JobResult.parse(value)
        except ProducerError as error:
            self._finish(text, error)
            return
        except (ValueError, KeyError, TypeError, IndexError):
            self._finish(text, SchemaMismatch("result", f"that of job {address.job_id} is none"))
            return
        if result.version == 1:
            # Version 1 kept those of all tenants there, and only the record says whose it is.
            self._to_look_up[text] = None
        else:
            self._finish(text, ended_early(result) or result)

    async def _look_up(self) -> None:
        """Find out about jobs one by one of which record or result is missing."""
        part = [text for text in _some(self._to_look_up) if text in self._open]
        calls = [self._found(self._open[text]) for text in part]
        for text in _some(self._to_look_up):
            del self._to_look_up[text]
        for text, outcome in zip(part, await asyncio.gather(*calls), strict=True):
            if isinstance(outcome, ServerError):
                raise outcome
            if outcome is None:
                self._seen_at[text] = monotonic()
            else:
                self._finish(text, outcome)

    async def _found(self, address: JobAddress) -> Outcome | None:
        """Return the outcome of a job, None if it has none yet."""
        reader = self._sources.reader
        try:
            result = await reader.result(address.job_id, _LOOK_UP_S, address.tenant)
        except ResultTimeout:
            return None
        except ProducerError as error:
            return error
        return ended_early(result) or result

    async def _asked(self, call: Callable[[], Awaitable[T]]) -> T:
        return await retrying(call, self._sources.url, self._sources.retry_for_s)

    def _finish(self, text: str, outcome: Outcome) -> None:
        address = self._open.pop(text, None)
        if address is None:
            return
        job = self._kept.pop(text, None)
        if job is not None:
            self._sources.client_channel.release(job)
        self._ready.append((address, outcome))

    def _release(self) -> None:
        """Listen to nothing more."""
        self._sources.ended_channel.leave(self)
        for job in self._kept.values():
            self._sources.client_channel.release(job)
        self._kept.clear()

    def ended(self, job: KeptJob) -> None:
        """Take a job whose terminal event was heard."""
        text = job.address.text
        result = job.result()
        if result is not None:
            self._finish(text, ended_early(result) or result)
        elif text in self._open:
            self._to_read[text] = True
        self._wake.set()

    def failed(self, error: Exception) -> None:
        """Go on by looking where nothing more is heard, unless the client was closed."""
        if isinstance(error, ClientClosed):
            self._error = error
        self._wake.set()

    def completed(self, address: str) -> None:
        """Take the address of a job whose result can be read."""
        if address in self._open:
            self._to_read[address] = True
            self._wake.set()

    def missed(self) -> None:
        """Read what may have ended meanwhile."""
        for text in self._open:
            self._to_read.setdefault(text, False)
        self._wake.set()


def _some(names: Iterable[str]) -> list[str]:
    """Return as many as one round trip takes."""
    return list(islice(names, _NUM_TOGETHER))
