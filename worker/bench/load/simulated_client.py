"""A simulated client submits one job, is perhaps refused, reads to the end, and checks it."""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from typing import TYPE_CHECKING, Any

from tokenbus.engine.null.null_config import NullConfig
from tokenbus.engine.null.null_engine import pseudo_token
from tokenbus.producer.errors import ProducerError, QueueFull
from tokenbus.worker.bench.load.messages import JobReport

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient, Job
    from tokenbus.producer.contract.events import Event
    from tokenbus.worker.bench.load.workload import PlannedJob
    from tokenbus.worker.bench.options import BenchOptions

# Added to the time after which a refused client may come back, as a share of it and in seconds, so
# that clients that were refused together do not come back together.
_JITTER_SHARE = 0.1
_JITTER_S = 0.05


class SimulatedClient:
    """Takes one job from submit to its end and keeps the times."""

    def __init__(
        self,
        client: AsyncClient,
        options: BenchOptions,
        job: PlannedJob,
        *,
        phase: str,
        at_s: float,
    ) -> None:
        self._client = client
        self._options = options
        self._job = job
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
        self.num_tokens = 0

    @property
    def request(self) -> dict[str, Any]:
        """Return the fields of the request."""
        return self._job.fields(self._options.temperature)

    def answered(self, answer: Job | ProducerError, submitted_s: float, now: float) -> None:
        """Take the answer to a submit of many."""
        self._submitted_s = submitted_s
        self._accepted_s = now
        self._answer = answer

    async def ride(self) -> None:
        """Submit and read to the end; what goes wrong is in the report."""
        try:
            job = await self._submit()
            if job is None:
                self._outcome = "refused"
                return
            self.job = job
            async for event in self._client.stream(job):
                self._see(event, time.monotonic())
            if self._options.check:
                await self._check(job)
        except ProducerError as error:
            self._outcome = "refused" if self.job is None else "lost"
            self._fault = f"{type(error).__name__}: {error}"

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
            output_tokens=self.num_tokens,
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
        """Take the answer that is there, else submit. Raises: QueueFull and other refusals."""
        answer, self._answer = self._answer, None
        if answer is None:
            answer = await self._client.submit(ticket=ticket, **self.request)
            self._accepted_s = time.monotonic()
        if isinstance(answer, ProducerError):
            raise answer
        return answer

    def _see(self, event: Event, now: float) -> None:
        if event.finish is not None:
            self._ended_s = now
            self._outcome = event.finish.reason
            usage = event.finish.usage
            self._num_prompt_tokens = usage.prompt_tokens
            self._num_cached_tokens = usage.cached_tokens
            return
        if event.start != self._last + 1 or event.to - event.start + 1 != len(event.ids):
            self._find(f"event {event.start}…{event.to} follows token {self._last}")
        self._last = event.to
        self._arrivals.append(now)
        self._counts.append(len(event.ids))
        self.num_tokens += len(event.ids)
        if self._options.check:
            self._ids.extend(event.ids)
            self._ends.extend(event.ends)
            self._texts.append(event.text)

    async def _check(self, job: Job) -> None:
        """Compare index, id and text of every token with the result, and with what was asked."""
        if self._outcome not in ("stop", "length"):
            self._find(f"ended as {self._outcome}")
            return
        choice = (await self._client.result(job)).choices[0]
        text = "".join(self._texts)
        if len(choice.ids) != self._job.max_tokens:
            self._find(f"the result has {len(choice.ids)} of {self._job.max_tokens} tokens")
        if tuple(self._ids) != choice.ids:
            self._find(f"{_differing(self._ids, choice.ids)} has another id in the result")
        if tuple(self._ends) != choice.ends or text != choice.text:
            self._find(f"{_differing(self._ends, choice.ends)} has another text in the result")
        if self._options.engine == "null" and self._ids != self._expected():
            self._find(f"{_differing(self._ids, self._expected())} is none of the engine's")

    def _expected(self) -> list[int]:
        """Return the ids that the null engine draws for this job."""
        config = NullConfig()
        return [
            pseudo_token(self._job.seed, 0, position, config.first_id, config.vocab_size)
            for position in range(self._job.max_tokens)
        ]

    def _find(self, fault: str) -> None:
        """Note the first fault."""
        self._fault = self._fault or fault


def _differing(ours: list[int], theirs: tuple[int, ...] | list[int]) -> str:
    """Name the first token in which two sequences differ."""
    pairs = zip(ours, theirs, strict=False)
    first = next((idx for idx, (a, b) in enumerate(pairs, 1) if a != b), None)
    return f"token {first or min(len(ours), len(theirs)) + 1}"
