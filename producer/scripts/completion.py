"""Completion: the sequences of scripts that end a job; anyone may start or repeat them.

The log decides: the terminal entry is the commit, all that follows is completion and may be
repeated by anyone. Every sequence stops where its last answer is older than `STALE_ANSWER_S`; the
ending tick of any worker then goes on from what the server holds (R10).
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.events import Event, Finish, closed, messages_of
from tokenbus.producer.contract.messages.wire_delta import end_json
from tokenbus.producer.contract.result import JobResult, build_result
from tokenbus.producer.scripts import STALE_ANSWER_S, End, Scripts, Takeover
from tokenbus.producer.scripts.completing import Completed, Retention
from tokenbus.producer.scripts.evidence import Crash
from tokenbus.producer.scripts.replies import Ending, LogStatus, Orphan, RequeueStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.producer.contract.messages.job_chat import JobChat

# The record outlives log and result by this much, so that a job id is never free while they are.
RECORD_MARGIN_MS = 5_000
# A zombie may append between our read and our end; each try means that it got one in.
MAX_END_TRIES = 8


class JobCompletion:
    """Runs these sequences for one client or worker.

    `clock` gives monotonic seconds, for the age of answers only.
    """

    def __init__(
        self,
        scripts: Scripts,
        retention: Retention | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scripts = scripts
        self._retention = retention or Retention()
        self._clock = clock

    async def complete(self, job_id: str, finish: str) -> None:
        """Complete a job whose terminal entry stands in the log, with that entry's finish (R9).

        Raises: redis.ResponseError where the server could not do it for this job.
        """
        [why] = await self.complete_many([Completed.of(job_id, finish)])
        if why:
            raise ResponseError(why)

    async def complete_many(self, jobs: Sequence[Completed]) -> list[str]:
        """Complete jobs whose terminal entries stand in their logs, in as few calls as may be (R9).

        Returns: for each job why it could not be completed, empty for all others. What is not
        complete lies in `ending`, and a tick goes on with it.
        """
        keep, scripts = self._retention, self._scripts.completion
        ttl_ms = max(keep.log_ms, keep.result_ms) + RECORD_MARGIN_MS
        if scripts.is_one_server:
            return await scripts.complete(jobs, keep, ttl_ms)
        whys = [""] * len(jobs)
        open_jobs = [number for number, job in enumerate(jobs) if job.finish]
        if open_jobs:
            answers = await scripts.mark_done([jobs[number] for number in open_jobs])
            for number, why in zip(open_jobs, answers, strict=True):
                whys[number] = why
        if done := [job for job, why in zip(jobs, whys, strict=True) if not why]:
            sizes = await scripts.retain(done, keep)
            await scripts.expire_records(done, sizes, keep, ttl_ms)
        return whys

    async def end_unowned(self, ending: Ending, answered_at: float) -> str | None:
        """End and complete a job in `ending`; `answered_at` is when the server named it.

        Returns: the finish that stands, or None where the answer grew too old or another epoch
        owns the log: the tick goes on then.
        """
        if ending.done:
            await self.complete_many([Completed(ending.job_id)])
            return ending.finish
        finish = Finish.parse(ending.finish)
        for _ in range(MAX_END_TRIES):
            events, chat = await self._scripts.log.story(ending.job_id)
            if self._clock() - answered_at > STALE_ANSWER_S:
                return None
            [reply] = await self._scripts.log.end(
                [_unowned_end(ending, finish, events or [], chat)]
            )
            if reply.status in (LogStatus.OK, LogStatus.TERMINAL):
                await self.complete(ending.job_id, reply.finish)
                return reply.finish
            if reply.status is LogStatus.FENCED:
                raised = await self._scripts.queue.raise_epoch(ending.job_id, reply.epoch)
                if raised is None or raised.done:
                    return None
                ending = raised
        return None

    async def cancel(self, job_id: str, tenant: str = "") -> str:
        """Cancel the job at an address; with a tenant only if it is that one's.

        Returns: `unknown`, `done` (it had ended before), `over` (so it had, and its owner is about
        to complete it), `held` (its owner ends it), `ended`, or `ending` where somebody else has
        to: the tick does.
        """
        asked_at = self._clock()
        reply = await self._scripts.queue.cancel(job_id, tenant)
        if reply.status == "held":
            # Behind all indices: only an end may follow.
            events = await self._scripts.log.events(reply.job_id, sys.maxsize)
            if events is not None:
                end = events[-1].finish if events else None
                return "held" if end is None or end.reason == "cancelled" else "over"
            # Not begun yet, or complete by now and its log gone: maybe by this very call.
            reply = await self._scripts.queue.cancel(address := reply.job_id)
            if reply.status == "done":
                stored = await self._scripts.log.result(address)
                is_ours = stored and JobResult.parse(stored).finish.reason == "cancelled"
                return "ended" if is_ours else "done"
        if reply.ending is None:
            return reply.status
        finish = await self.end_unowned(reply.ending, asked_at)
        if finish is None:
            return "ending"
        return "ended" if Finish.parse(finish).reason == "cancelled" else "done"

    async def tick(self) -> bool:
        """Run one tick and end what it found; True if more is due.

        Raises: redis.ResponseError where one of those is refused, after the others were ended.
        """
        asked_at = self._clock()
        reply = await self._scripts.queue.tick()
        done = [Completed(ending.job_id) for ending in reply.endings if ending.done]
        if done:
            await self.complete_many(done)
        refused: ResponseError | None = None
        for ending in reply.endings:
            if not ending.done:
                try:
                    await self.end_unowned(ending, asked_at)
                except ResponseError as error:
                    refused = error
        if refused is not None:
            raise refused
        return reply.more

    async def reap(self, reaper: str, orphan: Orphan, answered_at: float) -> RequeueStatus | None:
        """Fence a dead worker's log and give its job back, counting a crash if it had begun.

        Returns: None where the answer grew too old or the job had ended and was completed.
        """
        if self._clock() - answered_at > STALE_ANSWER_S:
            return None
        epoch = orphan.epoch + 1
        [reply] = await self._scripts.log.takeover(
            [Takeover(orphan.job_id, epoch, reaper, create=False)]
        )
        if reply.status is LogStatus.TERMINAL:
            await self.complete(orphan.job_id, reply.finish)
            return None
        return await self._scripts.lease.requeue(
            orphan.worker,
            orphan.job_id,
            orphan.epoch,
            marker_epoch=max(epoch, reply.epoch),
            num_logged=reply.last,
            crash=_crash_of(orphan) if reply.epoch_before == orphan.epoch else None,
        )


def _crash_of(orphan: Orphan) -> Crash:
    return Crash(cause="worker", num_suspected=orphan.num_held)


def _unowned_end(ending: Ending, finish: Finish, events: list[Event], chat: JobChat | None) -> End:
    """Put the end of a job together from what its log holds."""
    tokens = [event for event in events if event.finish is None]
    last = tokens[-1].to if tokens else 0
    usage = Usage(finish.usage.prompt_tokens, finish.usage.cached_tokens, last)
    finish = replace(finish, usage=usage)
    version, held_back = ending.version, ""
    messages = messages_of(chat, ending.job_id)
    if messages is not None:
        for event in tokens:
            messages.read(event.choice, event.text, event.ends)
        held_back = end_json(messages.finish())
        finish = closed(finish, messages, [])
    result = build_result(ending.job_id, ending.epoch, tokens, finish, version=version)
    return End(
        ending.job_id,
        ending.epoch,
        last,
        finish.dump(),
        result.dump(),
        owned=False,
        version=version,
        listen=ending.listen,
        told=held_back,
    )
