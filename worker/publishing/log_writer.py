"""A log writer moves tokens into the logs, in order and once, and commits the ends.

Each job wants at most one thing of its log at a time: a takeover, its beginning, the next tokens,
or its end. A log writer takes up to 64 such jobs and spends one script call per kind; while a call
is under way new tokens gather, so that a slow server gets fewer and larger entries. A job belongs
to one log writer, and so to one connection, for life, and is in one call at a time. The log's
answer decides (rules R1 to R4). Calls and answers are one noun, past three hundred lines: each is
read by the next.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from redis.exceptions import RedisError

from tokenbus.engine.containment import Containment
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.scripts.append_batch import AppendBatch
from tokenbus.producer.scripts.begin_batch import BeginBatch
from tokenbus.producer.scripts.log import MAX_BATCH, End, LogScripts, Takeover
from tokenbus.producer.scripts.replies import LogStatus
from tokenbus.producer.scripts.runner import ScriptRunner
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.logs import get_logger
from tokenbus.worker.messages.publishing import Broken, Committed, Fenced
from tokenbus.worker.publishing.coalescing import Coalescing
from tokenbus.worker.publishing.log_connection import LogConnection
from tokenbus.worker.publishing.log_states import LogAccess, LogState, Turn
from tokenbus.worker.publishing.packing import add_beginning, add_tokens, end_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.scripts.replies import LogReply
    from tokenbus.worker.publishing.job_log import JobLog
    from tokenbus.worker.publishing.writer_host import WriterHost

T = TypeVar("T")

# A slice does not wait for the answer to the one before: four calls bridge the way to the server
# and back while a step is written.
NUM_LOG_WRITERS = 4
# A whole answer costs the server as much as four appends: 24 keep it for 0.34 ms.
_MAX_BEGINNINGS = 24

_FINISHED = ("stop", "length")

# What one job of a call begins with: its last index, its number of entries, its finish if it ends.
_Beginning = tuple[int, int, str]


class LogWriter:
    """Keeps the logs of its share of a publisher's jobs up to date."""

    def __init__(self, host: WriterHost, redis: Redis) -> None:
        self._host = host
        self._connection = LogConnection(redis)
        scripts = host.scripts
        # The session bounds these calls.
        runner = ScriptRunner(redis, None, self._connection.execute)
        self._timeout_s = scripts.timeout_s
        self._scripts = LogScripts(runner, scripts.keys, scripts.publish)
        self._coalescing = Coalescing()
        self._containment: Containment[JobLog] = Containment()
        self._first: deque[JobLog] = deque()
        self._queue: deque[JobLog] = deque()
        # How a job is queued of which this owner has logged a token.
        self._enqueue_behind = self._queue.append
        self._wake = asyncio.Event()
        self._first_came = asyncio.Event()
        self._must_renew = False
        self._log = get_logger()

    def enqueue(self, job: JobLog) -> None:
        """Queue a job ahead of the others, for a call at once.

        Once a token of this owner is logged, the job is queued behind the others instead, and waits
        for `go_on`.
        """
        self._first.append(job)
        self._first_came.set()
        self._wake.set()

    def go_on(self) -> None:
        """Send what is queued, if that is worth a call."""
        if not self._is_filling():
            self._wake.set()

    def renew(self) -> None:
        """Take another connection for the session that opens."""
        self._must_renew = True

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.renew()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._wake.wait()
            await self._host.session.opened()
            if self._must_renew:
                self._must_renew = False
                await self._connection.renew()
            await self._hold()
            if self._is_filling():
                self._wake.clear()
                continue
            jobs = self._next_batch()
            try:
                await self._advance(jobs)
            except SessionLost:
                continue
            except RedisError as error:
                # The server refuses the call itself: no job can be blamed, so start over cleanly.
                self._log.exception("log.call_refused")
                self._host.session.lose(f"log call refused: {error}")
            finally:
                self._end_turns(jobs)

    def _end_turns(self, jobs: Sequence[JobLog]) -> None:
        no_turn, opened, known = Turn.NONE, LogState.OPEN, LogAccess.KNOWN
        for job in jobs:
            job.turn = no_turn
            if job.num_logged != job.last or job.state is not opened or job.access is not known:
                self._host.touch(job)
                self._host.report_all_logged(job)

    def _is_filling(self) -> bool:
        """Tell whether the next call is less than a slice while more comes at once."""
        return not self._first and len(self._queue) < self._host.rows_to_call

    async def _hold(self) -> None:
        """Wait for the hold after the next job's last entry; first tokens end the wait."""
        hold_s = self._coalescing.hold_s
        while hold_s and self._queue and not self._first:
            left_s = self._queue[0].sent_at + hold_s - time.monotonic()
            if left_s <= 0:
                return
            self._first_came.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._first_came.wait()
            except TimeoutError:
                return

    def _next_batch(self) -> list[JobLog]:
        """Take the jobs of the next call; first tokens have a call of their own and never wait."""
        queue = self._first or self._queue
        no_turn, in_call = Turn.NONE, Turn.IN_CALL
        jobs: list[JobLog] = []
        while queue and len(jobs) < MAX_BATCH:
            job = queue.popleft()
            if job.wants_log:
                job.turn = in_call
                jobs.append(job)
            else:
                job.turn = no_turn
        if not self._first and not self._queue:
            self._wake.clear()
        return jobs

    async def _advance(self, jobs: Sequence[JobLog]) -> None:
        known = LogAccess.KNOWN
        begins = [job for job in jobs if job.begins]
        others = [job for job in jobs if not job.begins] if begins else jobs
        for shard, part in _by_shard(begins):
            for first in range(0, len(part), _MAX_BEGINNINGS):
                await self._begin(shard, part[first : first + _MAX_BEGINNINGS])
        takeovers = [job for job in others if job.access is not known]
        if takeovers:
            await self._take_over(takeovers)
        appends = [job for job in others if job.access is known and job.num_logged < job.last]
        for shard, part in _by_shard(appends):
            await self._append(shard, part)
        ends = [job for job in jobs if job.state is LogState.ENDING and job.is_fully_logged]
        if ends:
            await self._end(ends)

    async def _call(self, act: Callable[[], Awaitable[T]]) -> T:
        """Ask the server on this log writer's connection. Raises: SessionLost; RedisError."""
        return await self._host.session.call(act, bulk=True, timeout_s=self._timeout_s)

    async def _take_over(self, jobs: list[JobLog]) -> None:
        worker = self._host.worker
        items = [
            Takeover(job.job_id, job.epoch, worker, chat=job.chat, prompt_tokens=job.prompt_tokens)
            for job in jobs
        ]
        replies = await self._call(lambda: self._scripts.takeover(items))
        for job, reply in zip(jobs, replies, strict=True):
            self._heed(job, reply)
        self._host.progress_counter.report()

    async def _begin(self, shard: int, jobs: list[JobLog]) -> None:
        # The worker may have let some go while a call before this one was under way.
        jobs = [job for job in jobs if job.begins]
        if not jobs:
            return
        parts = self._containment.split(
            jobs, lambda part: self._packed_begins(jobs[part]), "its first tokens were packed"
        )
        self._break_failed()
        for part, packed in parts:
            if packed is not None:
                await self._send_begins(shard, jobs[part], *packed)

    @staticmethod
    def _packed_begins(jobs: list[JobLog]) -> tuple[BeginBatch, list[_Beginning]]:
        batch = BeginBatch()
        return batch, [add_beginning(job, batch) for job in jobs]

    async def _send_begins(
        self, shard: int, jobs: list[JobLog], batch: BeginBatch, begun: list[_Beginning]
    ) -> None:
        started_at = time.monotonic()
        sinces = [job.unlogged_since for job in jobs]
        for job, (to, _, _) in zip(jobs, begun, strict=True):
            job.sent_at = started_at
            if to == job.last:
                job.unlogged_since = None
        worker, until_ms = self._host.worker, self._host.session.until_ms
        others = await self._call(lambda: self._scripts.begin_batch(shard, worker, until_ms, batch))
        now = time.monotonic()
        written: list[float] = []
        num_fresh = 0
        for number, (job, (to, num_entries, finish)) in enumerate(zip(jobs, begun, strict=True)):
            if number in others:
                self._heed(job, others[number])
                continue
            job.take_over()
            if to:
                self._note_published(job, now)
            job.num_logged, job.num_entries = to, 1 + num_entries
            if to:
                job.enqueue_by(self._enqueue_behind)
                written.append(sinces[number] or started_at)
                num_fresh += max(0, to - job.num_credited)
                job.num_credited = max(to, job.num_credited)
            if finish:
                self._commit(job, finish)
        if written:
            self._note_call(started_at, now, num_fresh, written)
        self._host.progress_counter.report()

    def _note_published(self, job: JobLog, now: float) -> None:
        """Note the first token of this owner, the job's first if nobody logged one before."""
        job.published_at = now
        if job.num_logged == 0:
            self._host.progress_counter.began(job.priority, now - job.submitted_at)

    def _note_call(
        self, started_at: float, now: float, num_fresh: int, sinces: list[float]
    ) -> None:
        """Count a call that logged entries whose first tokens came at `sinces`."""
        self._coalescing.called(started_at, now)
        progress_counter = self._host.progress_counter
        progress_counter.called(num_fresh, sinces, started_at, now, self._coalescing.hold_s)

    async def _append(self, shard: int, jobs: list[JobLog]) -> None:
        parts = self._containment.split(
            jobs, lambda part: self._packed(jobs[part]), "its tokens were packed"
        )
        self._break_failed()
        for _, packed in parts:
            if packed is not None:
                await self._send(shard, *packed)

    def _packed(self, jobs: list[JobLog]) -> tuple[AppendBatch, list[tuple[JobLog, int]]]:
        """Return what jobs lack in their logs, and up to which index."""
        batch = AppendBatch()
        sent: list[tuple[JobLog, int]] = []
        for job in jobs:
            # A first token goes alone.
            is_first = job.enqueue is not self._enqueue_behind
            sent.append((job, add_tokens(job, batch, 1 if is_first else None)))
        batch.heard_by([job.listen for job in jobs])
        return batch, sent

    async def _send(self, shard: int, batch: AppendBatch, sent: list[tuple[JobLog, int]]) -> None:
        started_at = time.monotonic()
        sinces = [job.unlogged_since or started_at for job, _ in sent]
        for job, to in sent:
            if to == job.last:
                job.unlogged_since = None
            job.sent_at = started_at
        others = await self._call(lambda: self._scripts.append_batch(shard, batch))
        now = time.monotonic()
        refused: set[int] = set()
        behind, num_fresh = self._enqueue_behind, 0
        for number, (job, to) in enumerate(sent):
            if number in others and not self._accept(job, others[number]):
                refused.add(number)
                continue
            if number not in others:
                job.num_entries += 1
            if job.enqueue is not behind:
                self._note_published(job, now)
                job.enqueue_by(behind)
            job.num_logged = to
            if to > job.num_credited:
                num_fresh += to - job.num_credited
                job.num_credited = to
        if refused:
            sinces = [since for number, since in enumerate(sinces) if number not in refused]
        self._note_call(started_at, now, num_fresh, sinces)

    def _accept(self, job: JobLog, reply: LogReply) -> bool:
        """Take an answer other than plain success; return whether the log holds what was sent."""
        if reply.status in (LogStatus.OK, LogStatus.ALREADY):
            job.num_entries = reply.entries
            return True
        if reply.status is LogStatus.GAP:
            self._host.follow(job, reply.last, reply.entries)
        else:
            self._heed(job, reply)
        return False

    async def _end(self, jobs: list[JobLog]) -> None:
        parts = self._containment.split(
            jobs, lambda part: [end_of(job) for job in jobs[part]], "its end was packed"
        )
        self._break_failed()
        for part, items in parts:
            if items is not None:
                await self._send_ends(jobs[part], items)

    async def _send_ends(self, jobs: list[JobLog], items: list[End]) -> None:
        replies = await self._call(lambda: self._scripts.end(items))
        for job, item, reply in zip(jobs, items, replies, strict=True):
            if reply.status in (LogStatus.OK, LogStatus.ALREADY):
                self._commit(job, reply.finish or item.finish)
            elif reply.status is LogStatus.GAP:
                self._host.follow(job, reply.last, 0)
            else:
                self._heed(job, reply)
        self._host.progress_counter.report()

    def _break_failed(self) -> None:
        """Give up the logs of jobs that cannot be written; another start may do better."""
        for job, fault in self._containment.take().items():
            job.set_access(LogAccess.BARRED)
            self._host.emit(Broken(self._host.generation, job.key, fault.message))

    def _commit(self, job: JobLog, finish: str) -> None:
        if job.state is LogState.DROPPED:
            return  # The worker has let the job go while the call was under way.
        is_own = job.state is LogState.ENDING
        job.move_to(LogState.COMMITTED)
        job.set_access(LogAccess.KNOWN)
        host = self._host
        if is_own and job.finish is not None and job.finish.reason in _FINISHED:
            host.progress_counter.ended(job.priority, time.monotonic() - job.submitted_at)
        parse_s = 0.0 if job.messages is None else job.messages.busy_s
        host.emit(Committed(host.generation, job.key, finish, job.published_at, parse_s))

    def _heed(self, job: JobLog, reply: LogReply) -> None:
        """Do what a start's answer says, or any that does not let this owner go on."""
        host = self._host
        match reply.status:
            case LogStatus.OK | LogStatus.LOG:
                host.taken(job, reply.last, reply.entries)
            case LogStatus.ALREADY:
                # Begun by this very start, and the answer was lost.
                job.take_over()
                if reply.last:
                    if job.published_at is None:
                        self._note_published(job, time.monotonic())
                    job.enqueue_by(self._enqueue_behind)
                host.follow(job, reply.last, reply.entries)
            case LogStatus.TERMINAL:
                if job.finish is None:
                    # Another's end: should the server forget it, it is written again.
                    job.finish = Finish.parse(reply.finish)
                self._commit(job, reply.finish)
            case LogStatus.FENCED:
                job.set_access(LogAccess.BARRED)
                host.emit(Fenced(host.generation, job.key, reply.epoch))
            case LogStatus.BEHIND:
                job.void()
            case LogStatus.NOLOG:
                host.session.lose(f"the log of {job.job_id} is gone")
            case _:
                job.set_access(LogAccess.BARRED)
                host.emit(Broken(host.generation, job.key, reply.finish))


def _by_shard(jobs: Sequence[JobLog]) -> list[tuple[int, list[JobLog]]]:
    """Group jobs by their shards."""
    shards = sorted({job.shard for job in jobs})
    return [(shard, [job for job in jobs if job.shard == shard]) for shard in shards]
