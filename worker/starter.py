"""Brings pulled jobs into the engine: check and tokenise, resume from the log, wait for pages."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.events import Failure
from tokenbus.worker.choice_text import ChoiceText
from tokenbus.worker.custody import FLAG_REASONS
from tokenbus.worker.errors import JobRefused, SessionLost
from tokenbus.worker.handoff import AddRequest
from tokenbus.worker.held_job import Phase
from tokenbus.worker.hooks import nobody
from tokenbus.worker.logs import get_logger
from tokenbus.worker.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.types import EngineLimits
    from tokenbus.producer.scripts import Scripts
    from tokenbus.worker.custody import Custody
    from tokenbus.worker.engine_link import EngineLink
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.ledger import Ledger
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.prompt import PromptPreparer
    from tokenbus.worker.session import Session

# Above this a request is checked and tokenised in a thread: it would hold up everyone's tokens for
# longer than a thread's hop costs (about 1 ms at 1 MB/s of tokenising).
INLINE_BYTES = 2048


class Starter:
    """Starts jobs whose log was taken over; runs again for a job whose start was cut short.

    `on_waiting` is told of a head-of-line job that is ready but for its pages.
    """

    def __init__(
        self,
        session: Session,
        scripts: Scripts,
        custody: Custody,
        ledger: Ledger,
        preparer: PromptPreparer,
        tokenizer: PreTrainedTokenizerFast,
        limits: EngineLimits,
        metrics: Metrics,
    ) -> None:
        self._session = session
        self._scripts = scripts
        self._custody = custody
        self._ledger = ledger
        self._preparer = preparer
        self._tokenizer = tokenizer
        self._limits = limits
        self._metrics = metrics
        self._log = get_logger()
        self._tasks: asyncio.TaskGroup | None = None
        self.engine: EngineLink | None = None
        self.touch: Callable[[HeldJob], None] = nobody
        self.on_waiting: Callable[[HeldJob], None] = nobody

    def run_in(self, tasks: asyncio.TaskGroup) -> None:
        """Run the starts in a task group."""
        self._tasks = tasks

    @property
    def can_start(self) -> bool:
        """Tell whether there is an engine to start jobs in."""
        return self.engine is not None and self.engine.is_alive

    async def prepare(self, job: HeldJob) -> None:
        """Check and tokenise a pulled job, so that its exact size is known."""
        raw = job.pulled.request
        try:
            if len(raw) <= INLINE_BYTES:
                job.prepared = self._preparer.prepare(raw)
            else:
                job.prepared = await asyncio.to_thread(self._preparer.prepare, raw)
        except JobRefused as error:
            job.refusal = Failure(error.code, str(error), error.field)
        except Exception as error:
            # The job boundary: whatever a request does to the tokenizer fails that job alone.
            self._log.exception("job.prepare_failed", job_id=job.job_id)
            job.refusal = Failure("internal", f"the request could not be prepared: {error}")
        else:
            job.prompt_tokens = job.prepared.num_prompt_tokens

    def taken(self, job: HeldJob, last: int) -> None:
        """Start a job, now that its log is ours up to `last`."""
        if job.phase is not Phase.PULLED or job.is_starting or self._tasks is None:
            return
        if job.transcript is None:
            job.is_starting = True
            self._tasks.create_task(self._start(job, last))

    async def _start(self, job: HeldJob, last: int) -> None:
        try:
            transcript = await self._restore(job, last)
        except SessionLost:
            return
        except RedisError:
            self._log.exception("job.resume_refused", job_id=job.job_id)
            self._custody.hand_back(job, crashed=True)
            return
        finally:
            job.is_starting = False
        if job.phase is not Phase.PULLED:
            return
        job.transcript = transcript
        job.num_credited = transcript.last
        job.reasons = [None] * transcript.num_choices
        self._decide_or_wait(job)

    async def _restore(self, job: HeldJob, last: int) -> Transcript:
        """Read what earlier owners logged, up to the takeover."""
        num_choices = job.prepared.params.n if job.prepared is not None else 1
        if last == 0:
            return Transcript(job.job_id, num_choices)
        events = await self._session.call(lambda: self._scripts.log.events(job.job_id))
        tokens = [event for event in events or () if event.finish is None and event.to <= last]
        num_choices = max(num_choices, 1 + max((event.choice for event in tokens), default=0))
        transcript = Transcript(job.job_id, num_choices)
        transcript.restore(tokens)
        if transcript.last != last:
            self._session.lose(f"the log of {job.job_id} changed while it was read")
            raise SessionLost("the log changed")
        self._metrics.jobs_resumed += 1
        self._log.info("job.resumed", job_id=job.job_id, epoch=job.epoch, logged_tokens=last)
        return transcript

    def _decide_or_wait(self, job: HeldJob) -> None:
        """End a job that needs no engine; let any other run when it has its pages."""
        if job.refusal is not None:
            job.decide("failed", job.refusal)
        elif job.flag:
            job.decide(FLAG_REASONS[job.flag])
        elif job.pulled.remaining_ms == 0:
            job.decide("expired")
        elif self._replay(job):
            job.decide(job.outcome())
        else:
            self.admit(job)
            if job.is_waiting:
                self.on_waiting(job)
            return
        self.touch(job)

    def admit(self, job: HeldJob) -> None:
        """Give a job to the engine, unless it is the head-of-line one and lacks pages."""
        if job.phase is not Phase.PULLED or job.transcript is None or job.prepared is None:
            return
        if job.is_waiting and not self._ledger.fits(job):
            return
        if self.engine is None or not self.can_start:
            self._custody.hand_back(job)
            return
        job.is_waiting = False
        num_choices = len(job.reasons)
        request = job.prepared.to_engine(
            job.request_id,
            job.pulled.priority,
            job.lane,
            tuple(job.transcript.ids_of(choice) for choice in range(num_choices)),
            tuple(choice for choice, reason in enumerate(job.reasons) if reason is not None),
        )
        job.timings.added_at = time.monotonic()
        job.move_to(Phase.RUNNING)
        self.engine.send(AddRequest(request))

    def _replay(self, job: HeldJob) -> bool:
        """Rebuild text and stop state of every choice; tell whether all of them had ended."""
        prepared, transcript = job.prepared, job.transcript
        if prepared is None or transcript is None:
            raise RuntimeError(f"job {job.job_id} starts unprepared")
        params = prepared.params
        stop_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids.update(self._limits.eos_token_ids)
        job.texts = []
        for choice in range(params.n):
            text = ChoiceText(self._tokenizer, prepared.prompt_ids, params)
            job.texts.append(text)
            ids = transcript.ids_of(choice)
            released = text.push(ids)
            if released.stopped_by is not None or (
                ids and ids[-1] in stop_ids and len(ids) >= params.min_tokens
            ):
                job.reasons[choice] = "stop"
            elif len(ids) >= params.max_tokens:
                job.reasons[choice] = "length"
        return all(reason is not None for reason in job.reasons)
