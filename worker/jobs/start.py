"""Brings pulled jobs into the engine: check and tokenise, have the log, wait for pages.

A job that nobody has owned before has nothing in its log: the engine begins while the log is being
taken over, and its publisher says nothing before it has the log.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tokenbus.engine.text.detokenizer import WINDOW_CONTEXT
from tokenbus.producer.contract.events import Failure
from tokenbus.worker.errors import JobRefused
from tokenbus.worker.held_job import Phase
from tokenbus.worker.hooks import nobody
from tokenbus.worker.jobs.settlement import FLAG_REASONS
from tokenbus.worker.logs import get_logger
from tokenbus.worker.publishing.messages import Taken, TextRules

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.types import EngineLimits
    from tokenbus.worker.engine.link import EngineLink
    from tokenbus.worker.held_job import HeldJob
    from tokenbus.worker.jobs.page_budget import PageBudget
    from tokenbus.worker.jobs.prompt import PreparedJob, PromptPreparer
    from tokenbus.worker.jobs.settlement import Settlement
    from tokenbus.worker.metrics import Metrics
    from tokenbus.worker.publishing.publisher_pool import PublisherPool

# Above this a text is tokenised in a thread: it would hold up everyone's tokens for longer than a
# thread's hop costs (about 1 ms at 1 MB/s of tokenising).
INLINE_TEXT_BYTES = 2048
# The same for a request that only has to be read, at 300 MB/s.
INLINE_BYTES = 64 * 1024


class Starter:
    """Starts jobs.

    `on_waiting` is told of a head-of-line job that is ready but for its pages.
    """

    def __init__(
        self,
        settlement: Settlement,
        page_budget: PageBudget,
        preparer: PromptPreparer,
        limits: EngineLimits,
        metrics: Metrics,
    ) -> None:
        self._settlement = settlement
        self._page_budget = page_budget
        self._preparer = preparer
        self._limits = limits
        self._metrics = metrics
        self._log = get_logger()
        self.engine: EngineLink | None = None
        self.publishers: PublisherPool | None = None
        self.on_waiting: Callable[[HeldJob], None] = nobody

    @property
    def can_start(self) -> bool:
        """Tell whether there is an engine to start jobs in."""
        return self.engine is not None and self.engine.is_alive

    async def prepare(self, job: HeldJob) -> None:
        """Check and tokenise a pulled job, so that its exact size is known."""
        try:
            job.prepared = await self._prepared(job.pulled.request)
        except JobRefused as error:
            job.refusal = Failure(error.code, str(error), error.field)
        except Exception as error:
            # The job boundary: whatever a request does to the tokenizer fails that job alone.
            self._log.exception("job.prepare_failed", job_id=job.job_id)
            job.refusal = Failure("internal", f"the request could not be prepared: {error}")
        else:
            job.prompt_tokens = job.prepared.num_prompt_tokens

    async def _prepared(self, raw: bytes) -> PreparedJob:
        preparer = self._preparer
        if len(raw) > INLINE_BYTES:
            return await asyncio.to_thread(lambda: preparer.tokenise(preparer.read(raw)))
        request = preparer.read(raw)
        if request.token_ids is None and len(raw) > INLINE_TEXT_BYTES:
            return await asyncio.to_thread(preparer.tokenise, request)
        return preparer.tokenise(request)

    def open_log(self, job: HeldJob) -> None:
        """Let a job's log be taken over, and start it: a fresh one at once, else once that is ours.

        Safe to repeat.
        """
        if self.publishers is None or job.publisher_link is not None:
            return
        rules = self._rules(job)
        is_ahead = rules is not None and job.is_fresh
        self.publishers.take_over(job, rules, is_ahead=is_ahead)
        if rules is not None and is_ahead:
            num_choices = rules.num_choices
            nothing = Taken(0, job.request_id, 0, [()] * num_choices, [None] * num_choices)
            self.taken(job, nothing)

    def taken(self, job: HeldJob, taken: Taken) -> None:
        """Start a job that goes on after `taken`: end one that needs no engine, admit any other."""
        if job.phase is not Phase.PULLED or job.taken is not None:
            return
        job.taken = taken
        job.lengths = [len(ids) for ids in taken.ids]
        if taken.last:
            self._metrics.jobs_resumed += 1
        if job.refusal is not None:
            self._settlement.decide(job, "failed", job.refusal)
        elif job.flag:
            self._settlement.decide(job, FLAG_REASONS[job.flag])
        elif job.pulled.remaining_ms == 0:
            self._settlement.decide(job, "expired")
        elif all(reason is not None for reason in taken.reasons):
            self._settlement.decide(job, "length" if "length" in taken.reasons else "stop")
        else:
            self.admit(job)
            if job.is_waiting:
                self.on_waiting(job)

    def _rules(self, job: HeldJob) -> TextRules | None:
        if job.prepared is None:
            return None
        params = job.prepared.params
        eos = () if params.ignore_eos else self._limits.eos_token_ids
        return TextRules(
            num_choices=params.n,
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
            stop=params.stop,
            include_stop=params.include_stop,
            stop_ids=(*params.stop_token_ids, *eos),
            prompt_tail=tuple(job.prepared.prompt_ids[-WINDOW_CONTEXT:]),
            tools=job.prepared.tool_reader,
            eos_ids=self._limits.eos_token_ids,
        )

    def admit(self, job: HeldJob) -> None:
        """Give a job to the engine, unless it is the head-of-line one and lacks pages."""
        if job.phase is not Phase.PULLED or job.taken is None or job.prepared is None:
            return
        if job.is_waiting and not self._page_budget.fits(job):
            return
        if self.engine is None or not self.can_start:
            self._settlement.hand_back(job)
            return
        job.is_waiting = False
        reasons = job.taken.reasons
        order = job.prepared.to_engine(
            job.request_id,
            job.pulled.priority,
            job.lane,
            tuple(job.taken.ids),
            tuple(choice for choice, reason in enumerate(reasons) if reason is not None),
        )
        job.num_running = reasons.count(None)
        job.timings.added_at = time.monotonic()
        job.move_to(Phase.RUNNING)
        self.engine.send(order)
