"""The start of pulled jobs: checked, tokenised, given to the engine where their log ends."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from tokenbus.engine.containment import Containment
from tokenbus.engine.types import travelling
from tokenbus.producer.contract.events import Failure
from tokenbus.worker.errors import JobRefused
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.jobs.settlement import FLAG_REASONS
from tokenbus.worker.logs import get_logger
from tokenbus.worker.request_tools import has_tools

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.prepared_job import PreparedJob
    from tokenbus.worker.held.served_model import ServedModel
    from tokenbus.worker.jobs.page_budget import PageBudget
    from tokenbus.worker.jobs.prompt import PendingPrompt, PromptPreparer
    from tokenbus.worker.jobs.settlement import Settlement
    from tokenbus.worker.messages.publishing import Taken
    from tokenbus.worker.metrics import Metrics

# Above this texts are tokenised in a thread: they would hold up everyone's tokens for longer than a
# thread's hop costs (about 1 ms at 2 MB/s of tokenising).
INLINE_CHARACTERS = 2048
# The same for requests that only have to be read, at 300 MB/s.
INLINE_BYTES = 64 * 1024


class RoomMaker(Protocol):
    """Frees pages by handing jobs back that may as well run later."""

    def park_for(self, urgent: HeldJob) -> None:
        """Make room for a job that is ready but for its pages, where that is possible."""
        ...


class Starter:
    """Prepares jobs and starts them; `parking` makes room for one that finds no pages.

    Without a `served` model every job takes what there is.
    """

    def __init__(
        self,
        *,
        settlement: Settlement,
        parking: RoomMaker,
        page_budget: PageBudget,
        preparer: PromptPreparer,
        engine: CurrentEngine,
        metrics: Metrics,
        served: ServedModel | None = None,
    ) -> None:
        self._settlement = settlement
        self._parking = parking
        self._page_budget = page_budget
        self._preparer = preparer
        self._engine = engine
        self._metrics = metrics
        self._served = served
        self._containment: Containment[int] = Containment()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._log = get_logger()

    async def tokenise(self, jobs: Sequence[HeldJob]) -> list[PendingPrompt]:
        """Read and tokenise the requests of pulled jobs together, in one thread if at all.

        Schemas of tools are work: a tenant has one thread for them, whatever it sends.
        """
        preparer, raws = self._preparer, [job.pulled.request for job in jobs]
        if any(map(has_tools, raws)):
            turn = self._turns.setdefault(jobs[0].pulled.tenant, asyncio.Lock())
            async with turn:
                return await asyncio.to_thread(self._tokenised, raws)
        if sum(map(len, raws)) > INLINE_BYTES:
            return await asyncio.to_thread(self._tokenised, raws)
        prompts = [preparer.begin(raw) for raw in raws]
        quick = [pending for pending in prompts if pending.is_quick]
        for pending in quick:
            preparer.render(pending)
        num_characters = sum(pending.num_characters for pending in quick)
        if len(quick) == len(prompts) and num_characters <= INLINE_CHARACTERS:
            preparer.encode(prompts)
        else:
            await asyncio.to_thread(preparer.encode, prompts)
        return prompts

    def _tokenised(self, raws: Sequence[bytes]) -> list[PendingPrompt]:
        prompts = [self._preparer.begin(raw) for raw in raws]
        self._preparer.encode(prompts)
        return prompts

    def prepare(self, job: HeldJob, pending: PendingPrompt) -> None:
        """Take the exact size of a tokenised job, or why it can never run."""
        try:
            if self._served is not None:
                self._served.check(job.pulled.model)
            prepared = job.prepared = self._preparer.finish(pending)
        except JobRefused as error:
            job.refusal = Failure(error.code, travelling(str(error)), error.field)
        except Exception as error:
            # The job boundary: whatever a request does to the tokenizer fails that job alone.
            self._log.exception("job.prepare_failed", job_id=job.job_id)
            why = travelling(f"the request could not be prepared: {error}")
            job.refusal = Failure("internal", why)
        else:
            job.prompt_tokens = prepared.num_prompt_tokens

    def start(self, job: HeldJob, taken: Taken) -> None:
        """Start a job that goes on after `taken`: end one that needs no engine, admit any other.

        Safe to repeat.
        """
        if job.phase is not Phase.PULLED or job.taken is not None:
            return
        job.taken = taken
        job.lengths = [len(ids) for ids in taken.ids]
        job.first = job.last
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
                self._parking.park_for(job)

    def admit(self, job: HeldJob) -> None:
        """Give a job to the engine, unless it is the head-of-line one and lacks pages."""
        if job.phase is not Phase.PULLED or job.taken is None or job.prepared is None:
            return
        if job.is_waiting and not self._page_budget.fits(job):
            return
        if not self._engine.is_up:
            self._settlement.hand_back(job, why="engine")
            return
        job.is_waiting = False
        with self._containment.guard(job.request_id, "it was given to the engine"):
            self._give(job, job.prepared, job.taken)
        for fault in self._containment.take().values():
            self._settlement.decide(job, "failed", Failure("internal", fault.message))

    def _give(self, job: HeldJob, prepared: PreparedJob, taken: Taken) -> None:
        reasons = taken.reasons
        request = prepared.to_engine(
            job.request_id,
            job.pulled.priority,
            job.lane,
            tuple(taken.ids),
            tuple(choice for choice, reason in enumerate(reasons) if reason is not None),
        )
        job.num_running = reasons.count(None)
        job.timings.added_at = time.monotonic()
        job.move_to(Phase.RUNNING)
        self._engine.add(request)
