"""Open streams: all requests of this process that wait for jobs, and what becomes of both.

A reader that leaves takes its jobs along after a grace, unless somebody reads them on, at this door
or another. That is known by the readers that each door writes down; the death of a door does not
count as the leaving of its readers.

It is one file because each tick looks after all of it: signs of life, places in the queue, readers,
keys that were revoked, and the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.contract.keys import NUM_PRIORITIES
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.gateway.access.key_ring import wrong_key
from tokenbus.producer.gateway.jobs.chunk_writer import Tick
from tokenbus.producer.gateway.wire import sse
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.gateway.access.caller import Caller
    from tokenbus.producer.gateway.access.key_ring import KeyRing
    from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob
    from tokenbus.producer.telemetry.gateway_metrics import GatewayMetrics

_TICK_S = 0.5
_POSITION_S = 2.0
# A reader counts for so long after it was written down last, and is written down again in time.
_READER_TTL_S = 60.0
_READER_RENEW_S = 20.0
# Readers of one round trip: to write down more keeps the tokens of all streams waiting for
# milliseconds.
_NUM_TOGETHER = 64
_log = logging.getLogger("tokenbus.gateway")


@dataclass(eq=False, slots=True)
class OpenStream:
    """One request that waits for jobs.

    is_kept: the jobs go on when nobody reads them.
    stopped: the error with which the door ends the request, once it does.
    asides: what to write between the frames, for those who wait and for proxies.
    position_frame: how a place in the queue is told, None as a comment.
    is_sending: frames may be written; `has_begun` says that some were.
    patience: the part of the time between comments that it is silent; thousands that began, or fell
        silent, together are not written to in one tick then, for which all others would wait.
    """

    caller: Caller
    jobs: Sequence[SubmittedJob]
    is_kept: bool = False
    stopped: asyncio.Future[ApiError] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    asides: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)
    sent_at: float = field(default_factory=time.monotonic)
    patience: float = field(default_factory=lambda: random.uniform(0.75, 1.0))
    is_sending: bool = False
    has_begun: bool = False
    jobs_ahead: int | None = None
    position_frame: Callable[[int], bytes] | None = None
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    renewed_at: float = float("-inf")

    def stop(self, error: ApiError) -> None:
        """End the request with an error; the first one counts."""
        if not self.stopped.done():
            self.stopped.set_result(error)

    def say(self, text: str) -> None:
        """Write a comment, unless something waits to be written."""
        if self.asides.empty():
            self.asides.put_nowait(sse.comment_frame(text))

    def tell_position(self, jobs_ahead: int) -> None:
        """Write how many jobs are ahead."""
        self.jobs_ahead = jobs_ahead
        frame = self.position_frame or _position_comment
        self.asides.put_nowait(frame(jobs_ahead))


class OpenStreams:
    """Looks after the open streams of one process."""

    def __init__(
        self,
        redis: Redis,
        keys: KeyRing,
        metrics: GatewayMetrics,
        *,
        grace_s: float,
        keepalive_s: float,
        drain_s: float,
        form_ttl_s: float,
    ) -> None:
        self.metrics = metrics
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis
        self._keys = keys
        self._grace_s = grace_s
        self._keepalive_s = keepalive_s
        self._drain_s = drain_s
        self._form_ttl_ms = int(form_ttl_s * 1000)
        self._open: set[OpenStream] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked_at = float("-inf")
        self.is_draining = False
        self._turn: Tick | None = None

    @property
    def tick(self) -> Tick:
        """Return the turn of the event loop that the streams share."""
        if self._turn is None:
            self._turn = Tick(asyncio.get_running_loop())
        return self._turn

    def __len__(self) -> int:
        """Count the streams."""
        return len(self._open)

    @property
    def can_resume(self) -> bool:
        """Tell whether a job goes on for a while without a reader."""
        return self._grace_s > 0

    def open(
        self, caller: Caller, jobs: Sequence[SubmittedJob], *, is_kept: bool = False
    ) -> OpenStream:
        """Begin to look after a request. Raises: ApiError 503 while the door closes."""
        if self.is_draining:
            raise draining(jobs)
        stream = OpenStream(caller, jobs, is_kept)
        places = [job.place.jobs_ahead for job in jobs if job.place is not None]
        stream.jobs_ahead = max(places, default=None)
        self._open.add(stream)
        return stream

    def close(self, stream: OpenStream, *, is_left: bool = False) -> None:
        """End to look after a request; `is_left` says that its reader went before the end."""
        if stream not in self._open:
            return
        self._open.discard(stream)
        if is_left and not stream.is_kept and stream.jobs:
            self._start(self._let_go(stream))

    async def cancel(self, jobs: Iterable[SubmittedJob]) -> None:
        """Cancel jobs, as far as the server takes it."""
        for job in jobs:
            with contextlib.suppress(ProducerError, *SERVER_ERRORS):
                await job.client.cancel(job.job_id, job.tenant)

    async def check_key(self, stream: OpenStream) -> None:
        """Check the key of a request. Raises: as `KeyRing.check`."""
        await self._keys.check(stream.caller)

    async def run(self) -> None:
        """Look after the streams until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                await self._tick()
            except (ProducerError, *SERVER_ERRORS) as error:
                # What reads the jobs tells its readers; here the next tick tries again.
                _log.debug("streams.tick_failed reason=%s", type(error).__name__)

    async def drain(self) -> None:
        """Take no more requests, let those under way end, and tell the rest to resume elsewhere."""
        self.is_draining = True
        for stream in self._open:
            stream.say(f"closing; resume with Last-Event-ID at {resume_path(stream.jobs)}")
        until = time.monotonic() + self._drain_s
        while self._open and time.monotonic() < until:  # noqa: ASYNC110 - each ends by itself
            await asyncio.sleep(0.05)
        for stream in list(self._open):
            stream.stop(draining(stream.jobs))

    async def shut(self) -> None:
        """End with the process: what was to be let go stays, to be resumed elsewhere."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _let_go(self, stream: OpenStream) -> None:
        """Cancel the jobs of a reader that has left, unless they are read on."""
        try:
            await asyncio.sleep(self._grace_s)
            if self._grace_s:
                await self._unregister(stream)
                if await self._is_read(stream.jobs[0].job_id):
                    return
            await self.cancel(stream.jobs)
        except (ProducerError, *SERVER_ERRORS) as error:
            _log.warning("stream.not_let_go reason=%s", type(error).__name__)

    async def _unregister(self, stream: OpenStream) -> None:
        await self._redis.zrem(deployment_keys.readers(stream.jobs[0].job_id), stream.name)

    async def _is_read(self, job_id: str) -> bool:
        if any(job.job_id == job_id for stream in self._open for job in stream.jobs[:1]):
            return True
        key = deployment_keys.readers(job_id)
        return bool(await self._redis.zcount(key, int(time.time() * 1000), "+inf"))

    async def _tick(self) -> None:
        now = time.monotonic()
        for stream in self._open:
            if stream.is_sending and now - stream.sent_at >= stream.patience * self._keepalive_s:
                stream.sent_at = now
                stream.say("waiting" if not stream.has_begun else "alive")
        await self._stop_revoked()
        if self.can_resume:
            await self._write_readers(now)
        if now - self._looked_at >= _POSITION_S:
            self._looked_at = now
            await self._tell_positions()

    async def _stop_revoked(self) -> None:
        """End the streams of keys that were revoked, and cancel their jobs."""
        key_ids = {stream.caller.key_id for stream in self._open} - {None}
        revoked = await self._keys.revoked(key_id for key_id in key_ids if key_id is not None)
        for stream in list(self._open):
            if stream.caller.key_id in revoked:
                stream.stop(wrong_key())
                self._start(self.cancel(stream.jobs))

    async def _write_readers(self, now: float) -> None:
        due = [
            stream
            for stream in self._open
            if stream.jobs and not stream.is_kept and now - stream.renewed_at >= _READER_RENEW_S
        ]
        until_ms = int((time.time() + _READER_TTL_S) * 1000)
        for first in range(0, len(due), _NUM_TOGETHER):
            part = due[first : first + _NUM_TOGETHER]
            async with self._redis.pipeline(transaction=False) as pipe:
                for stream in part:
                    job_id = stream.jobs[0].job_id
                    key = deployment_keys.readers(job_id)
                    pipe.zadd(key, {stream.name: until_ms})
                    pipe.pexpire(key, int(_READER_TTL_S * 1000))
                    # A job may wait or stream for longer than what is said of it is kept.
                    pipe.pexpire(deployment_keys.stream_form(job_id), self._form_ttl_ms)
                await pipe.execute()
            for stream in part:
                stream.renewed_at = now

    async def locate(self, stream: OpenStream) -> None:
        """Tell how many jobs are ahead of one that waits, at most.

        Raises: what a call on the server raises.
        """
        stream.tell_position(max(0, await self._num_waiting(stream.jobs[0]) - 1))

    async def _tell_positions(self) -> None:
        """Tell those whose jobs wait how many are ahead of them, as far as one look shows."""
        waiting = [
            stream
            for stream in self._open
            if stream.is_sending and not stream.has_begun and stream.jobs_ahead
        ]
        for pool, job in {stream.jobs[0].pool: stream.jobs[0] for stream in waiting}.items():
            num_waiting = await self._num_waiting(job)
            for stream in waiting:
                if stream.jobs[0].pool == pool and not stream.has_begun:
                    _tell_position(stream, num_waiting)

    async def _num_waiting(self, job: SubmittedJob) -> int:
        """Count what waits in the pool of a job."""
        scripts = job.client.scripts
        names = [f"jobs:{priority}" for priority in range(NUM_PRIORITIES)]
        redis: Any = scripts.redis
        counts = await redis.hmget(scripts.keys.of("load"), names)
        return sum(int(count or 0) for count in counts)


def _tell_position(stream: OpenStream, num_waiting: int) -> None:
    """Say that at most so many are ahead, if it is news."""
    ahead = min(stream.jobs_ahead or 0, max(0, num_waiting - 1))
    if ahead != stream.jobs_ahead:
        stream.tell_position(ahead)


def _position_comment(jobs_ahead: int) -> bytes:
    return sse.comment_frame(f"queue position {jobs_ahead}")


def resume_path(jobs: Sequence[SubmittedJob]) -> str:
    """Return where a stream is resumed."""
    return f"/v1/jobs/{jobs[0].job_id}/stream" if jobs else "/"


def draining(jobs: Sequence[SubmittedJob]) -> ApiError:
    """Return what is told to those who wait when the door closes."""
    message = "This gateway is closing."
    if jobs:
        message += f" The answer goes on: resume with Last-Event-ID at {resume_path(jobs)}."
    return ApiError(503, message, code="gateway_closing", headers={"Retry-After": "1"})
