"""A simulated client submits one job, is perhaps refused, reads to the end, and checks it."""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.engine.null.null_config import NullConfig
from tokenbus.engine.null.null_engine import pseudo_token
from tokenbus.producer.contract.events import FINISHED_REASONS
from tokenbus.producer.contract.result import JobEndedEarly
from tokenbus.producer.errors import ProducerError, QueueFull
from tokenbus.worker.bench.load.messages import JobReport

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient, Job
    from tokenbus.producer.client.reading.gathering import Outcome
    from tokenbus.producer.contract.events import Event, Finish
    from tokenbus.producer.contract.result import JobResult
    from tokenbus.worker.bench.load.plain_readers import ChannelReader
    from tokenbus.worker.bench.load.workload import PlannedJob
    from tokenbus.worker.bench.options import BenchOptions

# Added to the time after which a refused client may come back, as a share of it and in seconds, so
# that clients that were refused together do not come back together.
_JITTER_SHARE = 0.1
_JITTER_S = 0.05
_NULL = NullConfig()


@dataclass(slots=True)
class Tally:
    """What the clients of a reader have sent and received so far."""

    num_submitted: int = 0
    num_open: int = 0
    num_tokens: int = 0


class SimulatedClient:
    """Takes one job from submit to its end and keeps the times."""

    def __init__(
        self,
        client: AsyncClient,
        options: BenchOptions,
        job: PlannedJob,
        tally: Tally,
        *,
        phase: str,
        at_s: float,
    ) -> None:
        self._client = client
        self._options = options
        self._job = job
        self._tally = tally
        self._phase = phase
        self._at_s = at_s
        self._submitted_s: float | None = None
        self._accepted_s: float | None = None
        self._ended_s: float | None = None
        self._num_refusals = 0
        self._outcome = "unfinished"
        self._fault: str | None = None
        self._arrivals = array("d")
        self._counts = array("I")
        self._last = 0
        self._ids: list[int] = []
        self._ends: list[int] = []
        self._texts: list[str] = []
        self._num_prompt_tokens = self._num_cached_tokens = 0
        self._answer: Job | ProducerError | None = None
        self.job: Job | None = None
        self.plain: ChannelReader | None = None

    @property
    def request(self) -> dict[str, Any]:
        """Return the fields of the request."""
        fields = self._job.fields(self._options.temperature)
        return fields if self.plain is None else fields | {"id": self.plain.job_id}

    @property
    def tenant(self) -> str:
        """The tenant whose job it is."""
        return self._job.tenant

    @property
    def has_ended(self) -> bool:
        """Tell whether the job's end was read."""
        return self._ended_s is not None

    @property
    def is_finished(self) -> bool:
        """Tell whether the job ended as it should."""
        return self._outcome in FINISHED_REASONS

    def answered(self, answer: Job | ProducerError, submitted_s: float, now: float) -> bool:
        """Take the answer to a submit of many; tell whether the job was accepted."""
        self._submitted_s = submitted_s
        if isinstance(answer, ProducerError):
            self._answer = answer
            return False
        self._accepted_s = now
        self.job = answer
        return True

    async def ride(self) -> None:
        """Submit and read to the end; what goes wrong is in the report."""
        try:
            if self.job is None:
                self.job = await self._submit()
            if self.job is None:
                self._outcome = "refused"
            elif self._options.results:
                [outcome] = await self._client.results([self.job])
                self.take_result(outcome, time.monotonic())
            else:
                async for event in self._client.stream(self.job):
                    self._see(event, time.monotonic())
        except ProducerError as error:
            self._outcome = "refused" if self.job is None else "lost"
            self._fault = f"{type(error).__name__}: {error}"

    def take_result(self, outcome: Outcome, now: float) -> None:
        """Take the whole answer as one event and the end."""
        result = result_in(outcome)
        if result is None:
            self._outcome = "lost"
            self._fault = f"{type(outcome).__name__}: {outcome}"
            return
        self._take_finish(result.finish, now)
        if not result.choices or not result.choices[0].ids:
            return
        choice = result.choices[0]
        self._take_tokens(len(choice.ids), now)
        self._ids, self._ends, self._texts = list(choice.ids), list(choice.ends), [choice.text]

    def compare(self, outcome: Outcome) -> None:
        """Compare index, id and text of every token that was read with the stored result."""
        result = result_in(outcome)
        if result is None:
            self._find(f"has no result: {type(outcome).__name__}: {outcome}")
            return
        choice = result.choices[0]
        if tuple(self._ids) != choice.ids:
            self._find(f"{_differing(self._ids, choice.ids)} has another id in the result")
        if tuple(self._ends) != choice.ends or "".join(self._texts) != choice.text:
            self._find(f"{_differing(self._ends, choice.ends)} has another text in the result")

    def check(self) -> None:
        """Compare what was read with what was asked for, and with the job's plain reader."""
        if not self.is_finished:
            self._find(f"ended as {self._outcome}")
            return
        text = "".join(self._texts)
        if self._ends != sorted(self._ends) or self._ends[-1:] != [len(text)]:
            self._find(f"its last tokens end at {self._ends[-3:]} of {len(text)} characters")
        if self._options.engine == "null":
            if self._ids != (expected := self._expected()):
                self._find(f"{_differing(self._ids, expected)} is none of the engine's")
        else:
            self._check_length(len(self._ids), text)
        if self.plain is not None and (fault := self.plain.fault(self._ids, text)) is not None:
            self._find(f"on its own channel: {fault}")

    def report(self) -> JobReport:
        """Return what happened so far."""
        submitted_s = self._at_s if self._submitted_s is None else self._submitted_s
        return JobReport(
            number=self._job.number,
            phase=self._phase,
            tenant=self._job.tenant,
            priority=self._job.priority,
            seed=self._job.seed,
            late_s=submitted_s - self._at_s,
            num_refusals=self._num_refusals,
            submitted_s=submitted_s,
            accepted_s=self._accepted_s,
            ended_s=self._ended_s,
            outcome=self._outcome,
            prompt_tokens=self._num_prompt_tokens,
            cached_tokens=self._num_cached_tokens,
            output_tokens=self._last,
            arrivals=self._arrivals.tobytes(),
            counts=self._counts.tobytes(),
            fault=self._fault,
        )

    async def _submit(self) -> Job | None:
        """Submit, coming back after a refusal as often as allowed; None if never accepted."""
        ticket = 0
        if self._submitted_s is None:
            self._submitted_s = time.monotonic()
        while True:
            try:
                return await self._ask(ticket)
            except QueueFull as refusal:
                self._num_refusals += 1
                ticket, wait_s = refusal.ticket, refusal.retry_after_s
                is_last = self._num_refusals > self._options.retries
                if is_last or wait_s > self._options.patience_s:
                    return None
            await asyncio.sleep(wait_s + random.uniform(0, _JITTER_SHARE * wait_s + _JITTER_S))

    async def _ask(self, ticket: int) -> Job:
        """Take the refusal that is there, else submit. Raises: QueueFull and other refusals."""
        answer, self._answer = self._answer, None
        if isinstance(answer, ProducerError):
            raise answer
        job: Job = await self._client.submit(ticket=ticket, **self.request)
        self._accepted_s = time.monotonic()
        return job

    def _see(self, event: Event, now: float) -> None:
        if event.finish is not None:
            self._take_finish(event.finish, now)
            return
        num_tokens = len(event.ids)
        if event.start != self._last + 1 or event.to - event.start + 1 != num_tokens:
            self._find(f"event {event.start}…{event.to} follows token {self._last}")
        self._take_tokens(num_tokens, now)
        if self._options.check:
            self._ids.extend(event.ids)
            self._ends.extend(event.ends)
            self._texts.append(event.text)

    def _take_finish(self, finish: Finish, now: float) -> None:
        self._ended_s = now
        self._outcome = finish.reason
        self._num_prompt_tokens = finish.usage.prompt_tokens
        self._num_cached_tokens = finish.usage.cached_tokens

    def _take_tokens(self, count: int, now: float) -> None:
        self._last += count
        self._tally.num_tokens += count
        self._arrivals.append(now)
        self._counts.append(count)

    def _check_length(self, num_tokens: int, text: str) -> None:
        """A job runs to its full length; a label may end it, and is its whole text then."""
        labels, most = self._job.labels, self._job.max_tokens
        if labels and num_tokens < most and text not in labels:
            self._find(f"{text!r} is none of the {len(labels)} labels")
        elif labels and not any(each.startswith(text) for each in labels):
            self._find(f"{text!r} begins none of the {len(labels)} labels")
        elif num_tokens > most or (num_tokens < most and not labels):
            self._find(f"the result has {num_tokens} of {most} tokens")

    def _expected(self) -> list[int]:
        """Return the ids that the null engine draws for this job."""
        return [
            pseudo_token(self._job.seed, 0, position, _NULL.first_id, _NULL.vocab_size)
            for position in range(self._job.max_tokens)
        ]

    def _find(self, fault: str) -> None:
        """Note the first fault."""
        self._fault = self._fault or fault


def result_in(outcome: Outcome) -> JobResult | None:
    """Return the result that an answer of `results` is or holds; None where there is none."""
    if isinstance(outcome, JobEndedEarly):
        return outcome.result
    return None if isinstance(outcome, ProducerError) else outcome


def _differing(ours: list[int], theirs: tuple[int, ...] | list[int]) -> str:
    """Name the first token in which two sequences differ."""
    pairs = zip(ours, theirs, strict=False)
    first = next((idx for idx, (a, b) in enumerate(pairs, 1) if a != b), None)
    return f"token {first or min(len(ours), len(theirs)) + 1}"
