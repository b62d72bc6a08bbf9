"""The engine: add, abort, step. No queue and no I/O.

One thread steps; grammars compile in threads beside it. The clock may decide how much of a prompt a
step holds, but tokens depend on nothing else than their request.

On a GPU a step is launched before the previous one is read back: sampled tokens stay on the device
on their way into the next step, and the host learns of an end one step late. What a sequence
sampled past its end is dropped. A step with drafts is read back before the next one is planned, but
what it brought is handed out when that one is under way. On a CPU there is nothing to overlap, so
each step is read back at once.

The file is one noun, past three hundred lines: what a step brings is delivered where requests
begin, end and fail.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from tokenbus.engine.errors import DeviceFault, EngineError, ModelUnsound, RequestRejected
from tokenbus.engine.execution.device_faults import escapes, is_device_fault
from tokenbus.engine.execution.drafting import Drafting
from tokenbus.engine.execution.request_check import check_request
from tokenbus.engine.sampling.plan import LOGIT_RULES, plan_of
from tokenbus.engine.scheduling.sequence import Sequence, SequenceState
from tokenbus.engine.text.prompt_ids import packed
from tokenbus.engine.types import (
    Admission,
    DraftCount,
    EngineLimits,
    EngineStats,
    Fault,
    FaultCode,
    FinishReason,
    Request,
    StepOutput,
    TokenDelta,
    TokenLogprobs,
)
from tokenbus.kernels.draw_outcomes import EMPTY_ROW

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as TokenIds

    from tokenbus.engine.containment import Guard
    from tokenbus.engine.execution.constrained import ConstrainedRows
    from tokenbus.engine.execution.pending_step import DrawnTokens, PendingStep
    from tokenbus.engine.execution.runner import Runner
    from tokenbus.engine.scheduling.scheduler import Drafts, Scheduler
    from tokenbus.engine.scheduling.sequence import SequenceEnd
    from tokenbus.engine.speculation.drafter import Speculation

    _Row = tuple[Sequence, int, TokenLogprobs | None]

# A model that was found sound is not asked again for each sequence whose numbers break.
_SOUND_S = 1.0


class Engine:
    """Continuous batching over one model and one page pool."""

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler,
        constrained: ConstrainedRows,
        limits: EngineLimits,
        *,
        one_step_ahead: bool,
        speculation: Speculation | None = None,
    ) -> None:
        self.limits = limits
        self._runner = runner
        self._scheduler = scheduler
        self._constrained = constrained
        self._containment = runner.containment
        self._one_step_ahead = one_step_ahead
        self._drafting = None
        if speculation is not None:
            self._drafting = Drafting(speculation, constrained)
        self._sound_until = 0.0
        self._requests: dict[int, list[Sequence]] = {}
        self._arrivals = 0
        self._inflight: PendingStep | None = None
        self._landed_at = 0.0
        self._deltas: list[TokenDelta] = []
        self._steps_total = 0
        self._prompt_tokens_total = 0
        self._generated_tokens_total = 0

    @property
    def has_work(self) -> bool:
        """Tell whether a step would do anything."""
        return bool(self._requests or self._inflight or self._deltas)

    @property
    def is_stalled(self) -> bool:
        """Tell whether everything left waits for its grammar."""
        if self._inflight is not None or self._deltas:
            return False
        sched = self._scheduler
        return all(seq.awaits_grammar for seq in chain(sched.running, sched.waiting))

    def prepare_grammars(self) -> None:
        """Build what the first grammar would hold up all others for, if there may be grammars."""
        self._constrained.warm_up()

    def add(self, request: Request) -> bool:
        """Queue a request.

        Returns: whether the device has nothing to do while prompts that fill a step wait for it, so
            that `step` is better called before more is prepared.
        Raises: RequestRejected with the field's name; SequenceTooLong with the numbers.
        """
        if request.request_id in self._requests:
            raise RequestRejected("request_id", f"{request.request_id} is running already")
        seqs: list[Sequence] = []
        try:
            self._prepare(request, seqs)
        except Exception as error:
            # The boundary of a request: nothing of it is in the batch yet.
            for seq in seqs:
                self._constrained.drop(seq)
            if isinstance(error, EngineError) or escapes(error):
                raise
            what = f"{type(error).__name__}: {error}"
            raise RequestRejected("request", f"cannot be set up: {what}") from error
        self._arrivals += 1
        self._requests[request.request_id] = seqs
        self._scheduler.add(seqs)
        return self._awaits_step()

    def abort(self, request_id: int, choice: int | None = None) -> None:
        """End a request, or one choice of it; pages are free at once (no-op if unknown)."""
        for seq in list(self._requests.get(request_id, ())):
            if choice is None or seq.choice == choice:
                self._end(seq, FinishReason.ABORTED)

    def step(self) -> StepOutput:
        """Launch the next step and deliver what the last one sampled.

        Whatever one sequence's work raises ends that sequence: see `containment`.
        Raises: DeviceFault; RankLost; ModelUnsound; what is a bug of the engine's own.
        """
        try:
            return self._step()
        except Exception as error:
            # The engine-thread boundary.
            if is_device_fault(error):
                raise DeviceFault(f"the device failed: {error}") from error
            raise

    def _step(self) -> StepOutput:
        if self._inflight is not None and self._inflight.drafted:
            # How many tokens a draft has brought decides on everything behind it.
            self._land()
        self._take_grammars()
        drafts = self._drafts()
        if drafts and self._inflight is not None:
            # Behind a token that is still on the device nobody can tell what of a draft is right.
            self._land()
            self._take_grammars()
            drafts = self._drafts()
        plan = self._scheduler.schedule(drafts)
        launched = None
        started_at = time.monotonic()
        if not plan.is_empty:
            constrained = self._constrained
            launched = self._runner.launch(
                plan, constrained.masks(plan), constrained.draft_masks(plan)
            )
            self._steps_total += 1
            # The device computes meanwhile.
            self._scheduler.prefill.register_planned()
        self._end_failed()
        if self._one_step_ahead:
            self._land()
            self._inflight = launched
        elif launched is not None:
            self._finish(launched, started_at)
        deltas, self._deltas = self._deltas, []
        return StepOutput(
            deltas=tuple(deltas),
            admitted=tuple(self._admission(seq) for seq in plan.admitted),
            preempted=tuple(seq.request.request_id for seq in plan.preempted),
            stats=self.stats(),
        )

    def _awaits_step(self) -> bool:
        """Tell whether a device that computes beside the host stands still before a full step."""
        is_busy = self._inflight is not None and not self._inflight.is_done
        return self._one_step_ahead and not is_busy and self._scheduler.fills_step()

    def _drafts(self) -> Drafts | None:
        return None if self._drafting is None else self._drafting.drafts(self._scheduler.running)

    def _land(self) -> None:
        """Read the step in flight back, if there is one."""
        if self._inflight is not None:
            done, self._inflight = self._inflight, None
            self._finish(done, 0.0)

    def _finish(self, done: PendingStep, started_at: float) -> None:
        """Deliver a step, and tell what it took since the one before, or since it was launched."""
        self._complete(done)
        now = time.monotonic()
        self._scheduler.sizer.observe(
            done.plan.num_prefill_tokens,
            len(done.plan.decode),
            now - max(self._landed_at, started_at),
        )
        if self._drafting is not None:
            # With all that the host did since the step before: drafts have to be worth it.
            self._drafting.measured(done.plan, now - self._landed_at)
        self._landed_at = now
        self._end_failed()

    def stats(self) -> EngineStats:
        """Return counters and gauges."""
        sched, drafting = self._scheduler, self._drafting
        return EngineStats(
            num_pages=self.limits.num_pages,
            free_pages=sched.pool.num_free,
            evictable_pages=sched.pool.num_evictable,
            num_running=len(sched.running),
            num_waiting=len(sched.waiting),
            steps_total=self._steps_total,
            prompt_tokens_total=self._prompt_tokens_total,
            cached_tokens_total=sched.prefill.cached_tokens_total,
            generated_tokens_total=self._generated_tokens_total,
            preempted_tokens_total=sched.preempted_tokens_total,
            preemptions_total=sched.preemptions_total,
            shared_pages=sched.pool.num_shared,
            decode_turns_total=0 if drafting is None else drafting.decode_turns_total,
            drafts_total=() if drafting is None else drafting.speculation.totals(),
        )

    def reset_prefix_cache(self) -> bool:
        """Forget all prefixes; refused (False) while any sequence holds pages."""
        return self._scheduler.pool.reset_prefixes()

    def learn_answer(self, name: int, group: str, token_ids: TokenIds[int]) -> None:
        """Let drafts for a group of requests, those of one cache salt, come from an answer.

        Nothing is done without speculation, here and in `drop_answers`.
        """
        if self._drafting is not None:
            self._drafting.learn_answer(name, group, token_ids)

    def drop_answers(self, names: TokenIds[int]) -> None:
        """Let no more drafts come from the answers of these names or requests."""
        if self._drafting is not None:
            self._drafting.drop_answers(names)

    @property
    def follower_pids(self) -> tuple[int, ...]:
        """Process ids of the ranks that run the model together with this one, in their order."""
        return self._runner.group.follower_pids

    @property
    def topology(self) -> str:
        """Where the ranks are, for people; empty where there is one."""
        return self._runner.group.topology

    def check_ranks(self) -> None:
        """Raise RankLost if a rank was lost, which a step would raise too."""
        self._runner.group.check()

    def check_integrity(self) -> None:
        """Check that pages add up (raises IntegrityError with the numbers)."""
        self._scheduler.check_integrity()

    def close(self) -> None:
        """Stop helper threads, and end the other ranks."""
        self._constrained.close()
        self._runner.close()

    def _prepare(self, request: Request, seqs: list[Sequence]) -> None:
        """Check a request and add its sequences to `seqs`, their grammars compiling."""
        ids = packed(request.prompt_ids)
        if ids is not request.prompt_ids:
            request = request.with_prompt(ids)
        check_request(request, self.limits)
        params = request.params
        for choice in range(params.n):
            if choice in request.done_choices:
                continue
            seqs.append(Sequence(request, choice, self._arrivals, self.limits.eos_token_ids))
            if params.grammar is not None:
                self._constrained.prepare(seqs[-1], params.grammar)

    def _admission(self, seq: Sequence) -> Admission:
        self._prompt_tokens_total += seq.num_prompt
        return Admission(
            seq.request.request_id, seq.num_prompt, min(seq.num_cached, seq.num_prompt)
        )

    def _complete(self, done: PendingStep) -> None:
        result = self._runner.collect(done)
        for seq, first, scores in result.prompt_logprobs:
            seq.take_prompt_scores(first, scores)
        for seq, first, scores in result.forced_logprobs:
            with self._containment.guard(seq, "its forced tokens were delivered"):
                self._deliver_forced(seq, first, scores)
        rows = zip(done.seqs, result.token_ids, result.logprobs, strict=True)
        undrawn: list[tuple[Sequence, int]] = []
        guard = self._containment.guard(None, "its token was delivered")
        is_done = False
        while not is_done:
            with guard:
                self._deliver(rows, guard, undrawn)
                is_done = True
        for drawn in result.drawn:
            with self._containment.guard(drawn.seq, "its drafted tokens were delivered"):
                self._deliver_drawn(drawn, undrawn)
        self._fail_undrawn(undrawn)

    def _deliver(
        self, rows: Iterable[_Row], guard: Guard[Sequence], undrawn: list[tuple[Sequence, int]]
    ) -> None:
        """Deliver the tokens of rows, and note in `undrawn` those that have none."""
        complete, deltas = self._scheduler.complete, self._deltas
        finished = SequenceState.FINISHED  # 50 ns to look up, for each of hundreds of rows
        for seq, token_id, logprob in rows:
            if seq.state is finished:
                continue
            guard.key = seq
            if token_id < 0:
                undrawn.append((seq, token_id))
            elif seq.grammar is not None:
                self._deliver_constrained(seq, [token_id], [] if logprob is None else [logprob])
            else:
                token_ids = (token_id,)
                end = complete(seq, token_ids)
                if end is None and logprob is None and not seq.prompt_logprobs:
                    # What nearly every row is; the host takes as long as the GPU for a step.
                    self._generated_tokens_total += 1
                    deltas.append(TokenDelta(seq.request.request_id, seq.choice, token_ids))
                else:
                    kept, reason = _kept(token_ids, end)
                    logprobs = () if logprob is None else (logprob,)
                    self._emit(seq, kept, reason, logprobs[: len(kept)])

    def _fail_undrawn(self, undrawn: list[tuple[Sequence, int]]) -> None:
        """Fail sequences whose logits hold no token. Raises: ModelUnsound if none's would."""
        for seq, outcome in undrawn:
            fault = _fault_of(seq, outcome)
            if fault.code is FaultCode.NUMERICS:
                self._check_model()
                self._scheduler.pool.drop_hashes(seq.pages)
            self._containment.fail(seq, fault)

    def _check_model(self) -> None:
        now = time.monotonic()
        if now < self._sound_until:
            return
        if not self._runner.model_is_sound():
            raise ModelUnsound("the model gives no finite logits for any token")
        self._sound_until = now + _SOUND_S

    def _deliver_drawn(self, drawn: DrawnTokens, undrawn: list[tuple[Sequence, int]]) -> None:
        """Deliver what was right of a draft, and the token drawn behind it."""
        seq, token_ids = drawn.seq, drawn.token_ids
        if seq.grammar is not None:
            # Behind the last place that has a mask nothing was drawn under the grammar.
            token_ids = token_ids[: len(seq.draws_forced)]
        if seq.state is SequenceState.FINISHED:
            return
        if self._drafting is not None:
            self._drafting.report(drawn)
        if token_ids[-1] < 0:
            undrawn.append((seq, token_ids.pop()))
        logprobs = [entry for entry in drawn.logprobs[: len(token_ids)] if entry is not None]
        if not token_ids:
            return
        if seq.grammar is not None:
            self._deliver_constrained(seq, token_ids, logprobs)
        else:
            kept, reason = _kept(tuple(token_ids), self._scheduler.complete(seq, token_ids))
            self._emit(seq, kept, reason, tuple(logprobs[: len(kept)]))

    def _deliver_constrained(
        self, seq: Sequence, token_ids: list[int], logprobs: list[TokenLogprobs]
    ) -> None:
        """Deliver drawn tokens, each after the grammar took the one before, and forced ones.

        Those that are not known to be forced come later, with the mask behind them.
        """
        kept, reason, forced = self._advance(seq, token_ids)
        scored = tuple(
            replace(entry, forced=is_forced)
            for entry, is_forced in zip(logprobs[: len(kept)], seq.draws_forced, strict=False)
        )
        if reason is None and forced is not None:
            _, reason = self._extend(seq, ())
            if reason is None:
                known = self._constrained.await_next(seq, forced)
                if known:
                    more, reason = self._extend(seq, known)
                    kept += more
        if kept or reason is not None:
            self._emit(seq, kept, reason, scored)

    def _extend(
        self, seq: Sequence, forced: tuple[int, ...]
    ) -> tuple[tuple[int, ...], FinishReason | None]:
        """Extend a sequence by forced tokens; end it if its grammar is complete with them.

        Returns: those to deliver now, and why it has ended, if it has. Where logprobs are asked for
            both wait for these.
        """
        is_over = self._constrained.is_complete(seq)
        if forced and seq.request.params.logprobs is not None:
            self._scheduler.hold_forced(seq, forced, is_last=is_over)
            return (), None
        kept: tuple[int, ...] = ()
        reason = None
        if forced:
            kept, reason = _kept(forced, self._scheduler.append_forced(seq, forced))
        if reason is None and is_over:
            reason = FinishReason.STOP
            self._scheduler.remove(seq, reason)
        return kept, reason

    def _advance(
        self, seq: Sequence, token_ids: list[int]
    ) -> tuple[tuple[int, ...], FinishReason | None, tuple[int, ...] | None]:
        """Take drawn tokens one by one, as far as the grammar goes along.

        Returns: the tokens taken; why the sequence ended with the last, if it did; and the tokens
            that are known to be forced behind it, None if the grammar gave up.
        """
        kept: tuple[int, ...] = ()
        forced: list[int] = []
        for number, token_id in enumerate(token_ids, 1):
            if forced and token_id != forced[0]:
                break
            if kept:
                end = self._scheduler.complete_right(seq, token_id)
            else:
                end = self._scheduler.complete(seq, (token_id,))
            if end is not None:
                return kept + (token_id,)[: end.num_kept], end.reason, ()
            found: list[int] | None = None
            with self._containment.guard(seq, "its grammar advanced", FaultCode.GRAMMAR):
                if number < len(token_ids):
                    found = self._constrained.accept_drafted(seq, token_id, number)
                else:
                    self._constrained.accept(seq, token_id)
                    found = []
            if found is None:
                return kept, None, None
            kept, forced = (*kept, token_id), forced[1:] or found
            if seq.matcher is None or seq.matcher.is_finished:
                break
        return kept, None, tuple(forced)

    def _end_failed(self) -> None:
        """End the sequences whose own work failed; their tokens in flight are dropped."""
        for seq, fault in self._containment.take().items():
            self._end(seq, FinishReason.FAILED, fault)

    def _deliver_forced(
        self, seq: Sequence, first: int, scores: list[TokenLogprobs | None]
    ) -> None:
        """Deliver forced tokens whose log-probabilities have come, and the end behind them."""
        token_ids, logprobs = seq.take_scores(first, scores)
        if seq.state is SequenceState.FINISHED or not token_ids:
            return
        reason = None if seq.num_unscored else seq.held_end
        if reason is not None:
            self._scheduler.remove(seq, reason)
        self._emit(seq, tuple(token_ids), reason, tuple(logprobs))

    def _end(self, seq: Sequence, reason: FinishReason, error: Fault | None = None) -> None:
        if seq not in self._requests.get(seq.request.request_id, ()):
            return  # Its end was delivered.
        if seq.state is not SequenceState.FINISHED:
            self._scheduler.remove(seq, reason)
        self._emit(seq, (), reason, (), error)

    def _emit(
        self,
        seq: Sequence,
        token_ids: tuple[int, ...],
        reason: FinishReason | None,
        logprobs: tuple[TokenLogprobs, ...],
        error: Fault | None = None,
    ) -> None:
        request_id = seq.request.request_id
        self._generated_tokens_total += len(token_ids)
        prompt_logprobs = None
        if seq.prompt_logprobs and seq.num_prompt_scored == seq.num_prompt:
            prompt_logprobs = tuple(seq.prompt_logprobs)
            seq.prompt_logprobs = []
        stop_id = None
        if reason is FinishReason.STOP and token_ids and token_ids[-1] in seq.stop_token_ids:
            stop_id = token_ids[-1]
        drafts = DraftCount()
        if reason is not None and self._drafting is not None:
            drafts = self._drafting.drop(seq)
        told = (reason, stop_id, error, logprobs, prompt_logprobs, drafts)
        self._deltas.append(TokenDelta(request_id, seq.choice, token_ids, *told))
        if reason is not None:
            seqs = self._requests.get(request_id, [])
            if seq in seqs:
                seqs.remove(seq)
            if not seqs:
                self._requests.pop(request_id, None)
            if seq.grammar is not None:
                self._constrained.drop(seq)

    def _take_grammars(self) -> None:
        """Deliver forced tokens, and end those whose grammar failed or is complete."""
        if self.is_stalled:
            self._constrained.wait()
        for seq, forced in self._constrained.take_prepared():
            with self._containment.guard(seq, "its forced tokens were taken"):
                kept, reason = self._extend(seq, forced)
                if kept or reason is not None:
                    self._emit(seq, kept, reason, ())
        self._end_failed()


def _kept(
    token_ids: tuple[int, ...], end: SequenceEnd | None
) -> tuple[tuple[int, ...], FinishReason | None]:
    """Return the tokens up to the end of their sequence, and why it ended."""
    return (token_ids, None) if end is None else (token_ids[: end.num_kept], end.reason)


def _fault_of(seq: Sequence, outcome: int) -> Fault:
    """Return why a sequence's logits hold no token, given what stands in the token's place."""
    if outcome == EMPTY_ROW and seq.grammar is not None:
        return Fault(FaultCode.GRAMMAR, "its rules and grammar leave no token")
    if outcome == EMPTY_ROW and plan_of(seq.request.params).has(LOGIT_RULES):
        return Fault(FaultCode.RULES, "its rules leave no token")
    return Fault(FaultCode.NUMERICS, "the logits of its next token are not finite")
