"""Turns tokens into text and decides what the log of each job needs next.

A desk serves the jobs of one publisher: inside the worker process, or in a process of its own. It
obeys the worker's orders at once and answers through `emit`; pumps do what takes the server.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from tokenbus.engine.types import FinishReason
from tokenbus.producer.events import Failure
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.logs import get_logger
from tokenbus.worker.publishing.manuscript import Manuscript, State
from tokenbus.worker.publishing.messages import (
    LAG_BOUNDS_S,
    Broken,
    ChoiceStopped,
    CloseGate,
    Configure,
    Decide,
    Decided,
    Forget,
    GiveBack,
    OpenGate,
    Progress,
    Renewed,
    Settled,
    Taken,
    TakeOver,
    Tokens,
)
from tokenbus.worker.publishing.pump import NUM_PUMPS, Pump

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from redis.asyncio import Redis
    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.detokenizer import ByteTable
    from tokenbus.engine.types import TokenLogprobs
    from tokenbus.producer.scripts import Scripts
    from tokenbus.worker.publishing.messages import Answer, Order
    from tokenbus.worker.session import Session


class Desk:
    """All manuscripts of one publisher. `emit` takes its answers, in order."""

    def __init__(
        self,
        session: Session,
        redis: Redis,
        scripts: Scripts,
        tokenizer: PreTrainedTokenizerBase | ByteTable,
        worker: str,
        emit: Callable[[Answer], None],
    ) -> None:
        self.session = session
        self.scripts = scripts
        self.worker = worker
        self.emit = emit
        self.generation = 0
        self._tokenizer = tokenizer
        self._manuscripts: dict[int, Manuscript] = {}
        self._pumps = [Pump(self, redis) for _ in range(NUM_PUMPS)]
        self._progress = Progress(lags=[0] * (len(LAG_BOUNDS_S) + 1))
        self._tasks: asyncio.TaskGroup | None = None
        self._log = get_logger()

    def run_in(self, tasks: asyncio.TaskGroup) -> None:
        """Run the pumps in a task group."""
        self._tasks = tasks
        for pump in self._pumps:
            tasks.create_task(pump.run())

    def obey(self, order: Order) -> None:
        """Carry one order out, as far as it needs no server; start what does."""
        match order:
            case Tokens():
                self._take(order)
            case Renewed(at):
                self.session.renewed(at)
            case OpenGate():
                self._open(order)
            case CloseGate():
                self.session.lose("the worker has lost its session")
            case TakeOver():
                self._add(Manuscript(order))
            case Decide(key, reason, error):
                self._decide(key, reason, error)
            case GiveBack(key):
                self._give_back(key)
            case Forget(key):
                self._forget(key)
            case Configure():
                raise ValueError("the publisher is configured already")

    def touch(self, job: Manuscript) -> None:
        """Note that a job may want something of its log; safe to repeat."""
        if not job.is_queued and not job.in_flight and job.wants_log:
            self._pumps[job.key % NUM_PUMPS].queue(job)

    def settle(self, job: Manuscript) -> None:
        """Tell the worker of a job that has nothing left to log before it goes back."""
        if job.is_settled and not job.is_forgotten:
            self.emit(Settled(self.generation, job.key, job.num_logged))

    def follow(self, job: Manuscript, last: int, num_entries: int) -> None:
        """Go on where the log ends, unless that is past what we know: then it is not ours."""
        job.num_logged, job.num_entries = last, num_entries
        if job.transcript is not None and last > job.last:
            self.bar(job)
            why = f"the log ends at {last}, memory at {job.last}"
            self.emit(Broken(self.generation, job.key, why))
        elif job.state is State.COMMITTED:
            job.state = State.ENDING

    def bar(self, job: Manuscript) -> None:
        """Leave a log alone until the session opens anew."""
        job.is_barred = True
        job.log_known = False

    def taken(self, job: Manuscript, last: int, num_entries: int) -> None:
        """Start or go on with a job whose log is ours up to `last`."""
        job.log_known = True
        self.follow(job, last, num_entries)
        if job.is_barred:
            return
        if job.transcript is not None:
            self._say_taken(job)
        elif last == 0:
            job.restore((), self._tokenizer)
            self._say_taken(job)
        elif self._tasks is not None:
            job.is_restoring = True
            self._tasks.create_task(self._restore(job, last))

    def confirm(self, job: Manuscript, to: int, since: float | None, now: float) -> None:
        """Note that the log holds a job's tokens up to `to`; `since` is when they were handed."""
        job.num_logged = to
        progress = self._progress
        fresh = to - job.num_credited
        if fresh > 0:
            job.num_credited = to
            progress.freed_tokens += fresh
            progress.logged_tokens += fresh
        progress.entries += 1
        if since is not None:
            lag_s = now - since
            progress.lag_sum_s += lag_s
            progress.lags[bisect_left(LAG_BOUNDS_S, lag_s)] += 1

    def called(self, waits_s: float, hold_s: float) -> None:
        """Note one append call and tell the worker what it did."""
        self._progress.calls += 1
        self._progress.waits_s += waits_s
        self._progress.hold_s = hold_s
        self.report()

    def report(self) -> None:
        """Tell the worker what was done since the last time."""
        done = self._progress
        if done.freed_tokens or done.calls:
            self._progress = Progress(lags=[0] * len(done.lags), hold_s=done.hold_s)
            self.emit(done)

    def _open(self, order: OpenGate) -> None:
        self.generation = order.generation
        for pump in self._pumps:
            pump.renew()
        for job in self._manuscripts.values():
            job.log_known = job.is_barred = False
        self.session.open(order.renewed_at)
        for job in list(self._manuscripts.values()):
            self.touch(job)
            self.settle(job)

    def _add(self, job: Manuscript) -> None:
        self._manuscripts[job.key] = job
        self.touch(job)

    def _take(self, step: Tokens) -> None:
        """Add a step's tokens to their manuscripts."""
        for key, num_cached in step.cached:
            if key in self._manuscripts:
                self._manuscripts[key].cached_tokens = num_cached
        rare = {row for row, *_ in (*step.ends, *step.logprobs, *step.prompt_logprobs)}
        token_ids, choices, counts = step.token_ids, step.choices, step.counts
        find, sent_at = self._manuscripts.get, step.sent_at
        start = 0
        for row, key in enumerate(step.keys):
            count = counts[row]
            end = start + count
            job = find(key)
            if job is None or job.state is not State.OPEN or job.reasons[choices[row]] is not None:
                self._progress.freed_tokens += count
            elif count == 1 and row not in rare and job.texts[choices[row]].is_plain:
                choice, token_id = choices[row], token_ids[start]
                assert job.transcript is not None
                text = job.texts[choice].push_plain(token_id)
                job.transcript.append_one(choice, token_id, text)
                if job.unlogged_since is None:
                    job.unlogged_since = sent_at
                if not job.is_queued and not job.in_flight:
                    self.touch(job)
            else:
                self._take_row(job, step, row, token_ids[start:end])
            start = end
        self.report()

    def _take_row(self, job: Manuscript, step: Tokens, row: int, ids: list[int]) -> None:
        """Add the tokens of a row that has anything out of the ordinary."""
        choice = step.choices[row]
        reason, stop_id, error = next((end[1:] for end in step.ends if end[0] == row), (None,) * 3)
        for other, prompt_logprobs in step.prompt_logprobs:
            if other == row:
                job.prompt_logprobs = tuple(
                    None if entry is None else _wire_logprobs(entry) for entry in prompt_logprobs
                )
        if ids:
            logprobs = next((found for other, found in step.logprobs if other == row), ())
            self._add_tokens(job, choice, ids, reason is not None, stop_id, logprobs)
            if job.unlogged_since is None:
                job.unlogged_since = step.sent_at
        if job.reasons[choice] is None:
            job.reasons[choice] = reason
        elif reason is None:
            self.emit(ChoiceStopped(job.key, choice))
        if reason == FinishReason.FAILED:
            message = error or "the engine gave this sequence up"
            self._end(job, "failed", Failure("engine", message))
        elif all(reason is not None for reason in job.reasons):
            self._end(job, job.outcome(), None)
        self.touch(job)

    def _add_tokens(
        self,
        job: Manuscript,
        choice: int,
        ids: list[int],
        is_last: bool,
        stop_id: int | None,
        logprobs: tuple[TokenLogprobs, ...],
    ) -> None:
        if job.transcript is None:
            raise RuntimeError(f"job {job.job_id} runs without a transcript")
        released = job.texts[choice].push(ids, is_last=is_last, stop_token_id=stop_id)
        wire = [_wire_logprobs(entry) for entry in logprobs[: len(released.ids)]]
        job.transcript.append(choice, released.ids, released.texts, wire)
        self._progress.freed_tokens += len(ids) - len(released.ids)
        if released.stopped_by is not None:
            job.reasons[choice] = FinishReason.STOP.value

    def _end(self, job: Manuscript, reason: str, error: Failure | None) -> None:
        """End a job of itself."""
        job.decide(reason, error)
        self.emit(Decided(job.key, reason, list(job.reasons), job.lengths()))

    def _decide(self, key: int, reason: str, error: Failure | None) -> None:
        job = self._manuscripts.get(key)
        if job is not None and job.state is State.OPEN:
            job.decide(reason, error)
            self.touch(job)

    def _give_back(self, key: int) -> None:
        job = self._manuscripts.get(key)
        if job is not None and job.state is State.OPEN:
            job.state = State.RETURNING
            self.touch(job)
            self.settle(job)

    def _forget(self, key: int) -> None:
        job = self._manuscripts.pop(key, None)
        if job is not None:
            job.is_forgotten = True
            self._progress.freed_tokens += max(0, job.last - job.num_credited)
            self.report()

    def _say_taken(self, job: Manuscript) -> None:
        if job.transcript is None or job.state is not State.OPEN:
            return
        choices = range(len(job.reasons))
        ids = [job.transcript.ids_of(choice) for choice in choices]
        self.emit(Taken(self.generation, job.key, job.last, ids, list(job.reasons)))

    async def _restore(self, job: Manuscript, last: int) -> None:
        """Read what earlier owners logged, up to the takeover."""
        try:
            events = await self.session.call(lambda: self.scripts.log.events(job.job_id))
            tokens = [event for event in events or () if event.finish is None and event.to <= last]
            if (tokens[-1].to if tokens else 0) != last:
                self.session.lose(f"the log of {job.job_id} changed while it was read")
                return
            job.restore(tokens, self._tokenizer)
            self._log.info("job.resumed", job_id=job.job_id, epoch=job.epoch, logged_tokens=last)
            self._say_taken(job)
        except SessionLost:
            return
        except RedisError as error:
            self._log.exception("job.resume_refused", job_id=job.job_id)
            self.bar(job)
            self.emit(Broken(self.generation, job.key, f"its log cannot be read: {error}"))
        finally:
            job.is_restoring = False
            self.touch(job)
            self.settle(job)


def _wire_logprobs(entry: TokenLogprobs) -> list[Any]:
    """Return [logprob, rank, [[id, logprob] …]] of one token."""
    return [entry.logprob, entry.rank, [list(pair) for pair in entry.top]]
