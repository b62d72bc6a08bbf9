"""An engine without a model: real page accounting, pseudo-tokens at a set rate.

It measures and tests the queue alone. Tokens depend on (seed, choice, position) and nothing else,
so a resumed job continues exactly like the unbroken run.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from tokenbus.engine.errors import RequestRejected, SequenceTooLong
from tokenbus.engine.null.null_pages import NullPages
from tokenbus.engine.null.null_sequence import NullSequence
from tokenbus.engine.text.prompt_ids import all_within
from tokenbus.engine.types import (
    Admission,
    EngineLimits,
    EngineStats,
    Fault,
    FaultCode,
    FinishReason,
    Request,
    StepOutput,
    TokenDelta,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.null.null_config import NullConfig

_MASK64 = (1 << 64) - 1


def pseudo_token(seed: int, choice: int, position: int, low: int, high: int) -> int:
    """Draw a token id in [low, high) by a splitmix64 hash of (seed, choice, position)."""
    state = (seed * 0x9E3779B97F4A7C15 + choice * 0xD1B54A32D192ED03 + position) & _MASK64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
    return low + (state ^ (state >> 31)) % (high - low)


class NullEngine:
    """Stands in for the engine where only the queue around it is of interest."""

    # It is one rank.
    follower_pids: tuple[int, ...] = ()
    topology = ""

    def __init__(
        self,
        config: NullConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config = config
        self._clock = clock
        self._sleep = sleep
        self._pages = NullPages(config.num_pages, config.page_size)
        self._sequences: dict[int, NullSequence] = {}
        self._deltas: list[TokenDelta] = []
        self._order = 0
        self._next_step_at = clock()
        self._steps = self._prompt_tokens = self._generated = 0
        self._preemptions = self._preempted_tokens = 0

    def check_ranks(self) -> None:
        """Raise if a rank was lost: there is one."""

    @property
    def limits(self) -> EngineLimits:
        """Sizes a caller pulls by; `num_pages` counts the scratch page."""
        c = self.config
        return EngineLimits(
            model="null",
            num_pages=c.num_pages,
            page_size=c.page_size,
            max_model_len=c.max_model_len,
            max_num_seqs=c.max_num_seqs,
            eos_token_ids=(c.eos_token_id,),
            vocab_size=c.vocab_size,
        )

    @property
    def has_work(self) -> bool:
        """Tell whether a step would do anything."""
        return bool(self._sequences or self._deltas)

    @property
    def is_stalled(self) -> bool:
        """Tell whether everything left waits for something outside the steps: never."""
        return False

    def add(self, request: Request) -> bool:
        """Queue a request; no step is due, for nothing is computed beside the host.

        Raises: RequestRejected if it is malformed, SequenceTooLong if it can never fit.
        """
        params = request.params
        if not request.prompt_ids:
            raise RequestRejected("prompt", "is empty")
        if not all_within(request.prompt_ids, self.config.vocab_size):
            raise RequestRejected("prompt", f"has ids outside 0..{self.config.vocab_size - 1}")
        if request.request_id in self._sequences:
            raise RequestRejected("request_id", f"{request.request_id} is already running")
        total = len(request.prompt_ids) + params.max_tokens
        if total > self.config.max_model_len:
            raise SequenceTooLong(
                f"prompt + max_tokens = {total} tokens exceed the context of "
                f"{self.config.max_model_len}"
            )
        need = self._pages.needed(len(request.prompt_ids), [params.max_tokens] * params.n)
        if need > self._pages.num_usable:
            raise SequenceTooLong(f"needs {need} pages, the pool has {self._pages.num_usable}")
        lengths = [len(ids) for ids in request.resumed_ids] or [0] * params.n
        done = [choice in request.done_choices for choice in range(params.n)]
        self._order += 1
        c = self.config
        # Looked for once: a long prompt is not to be searched in every step.
        ids = (c.crash_id, c.crash_with_id, c.hang_id, c.fail_id)
        planted = {each for each in ids if each is not None}
        faults = planted.intersection(request.prompt_ids) if planted else set()
        self._sequences[request.request_id] = NullSequence(
            request, self._order, lengths, done, faults, lengths[0]
        )
        return False

    def abort(self, request_id: int, choice: int | None = None) -> None:
        """End a request, or one choice of it; its pages are free with its last choice."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return
        for number, done in enumerate(sequence.done):
            if not done and choice in (None, number):
                self._end(sequence, number, FinishReason.ABORTED)
        self._drop_if_done(sequence)

    def step(self) -> StepOutput:
        """Admit, prefill a chunk, emit one token per running choice, at the configured pace."""
        self._pace()
        self._steps += 1
        preempted: list[int] = []
        admitted = self._admit()
        budget = self.config.prefill_tokens_per_step
        for sequence in sorted(self._running(), key=_service_order):
            if not sequence.running:
                continue
            chunk = min(budget, sequence.num_to_prefill - sequence.num_prefilled)
            if chunk > 0:
                sequence.num_prefilled += chunk
                budget -= chunk
                self._prompt_tokens += chunk
            if sequence.num_prefilled < sequence.num_to_prefill:
                continue
            if sequence.faults and self._trip_fault(sequence):
                continue
            self._grow(sequence, preempted)
            if sequence.running:
                self._emit(sequence)
        deltas, self._deltas = self._deltas, []
        return StepOutput(tuple(deltas), tuple(admitted), tuple(preempted), self.stats())

    def stats(self) -> EngineStats:
        """Count pages, requests and tokens."""
        running = len(self._running())
        return EngineStats(
            num_pages=self.config.num_pages,
            free_pages=self._pages.num_free,
            evictable_pages=0,
            num_running=running,
            num_waiting=len(self._sequences) - running,
            steps_total=self._steps,
            prompt_tokens_total=self._prompt_tokens,
            cached_tokens_total=0,
            generated_tokens_total=self._generated,
            preempted_tokens_total=self._preempted_tokens,
            preemptions_total=self._preemptions,
        )

    def learn_answer(self, *_: object) -> None:
        """Take no notice: made-up tokens are not drafted."""

    def drop_answers(self, *_: object) -> None:
        """Take no notice, for the same reason."""

    def check_integrity(self) -> None:
        """Raise IntegrityError unless free and held pages are exactly the pool."""
        self._pages.check(page for seq in self._sequences.values() for page in seq.pages)

    def _running(self) -> list[NullSequence]:
        return [sequence for sequence in self._sequences.values() if sequence.running]

    def _admit(self) -> list[Admission]:
        admitted = []
        num_running = sum(len(s.lengths) for s in self._running())
        waiting = [s for s in self._sequences.values() if not s.running]
        for sequence in sorted(waiting, key=_service_order):
            need = self._pages.needed(
                len(sequence.request.prompt_ids), [length + 1 for length in sequence.lengths]
            )
            num_running += len(sequence.lengths)
            if need > self._pages.num_free or num_running > self.config.max_num_seqs:
                break
            sequence.pages = self._pages.take(need)
            sequence.running = True
            sequence.num_prefilled = 0
            admitted.append(
                Admission(sequence.request.request_id, len(sequence.request.prompt_ids), 0)
            )
        return admitted

    def _grow(self, sequence: NullSequence, preempted: list[int]) -> None:
        need = self._pages.needed(
            len(sequence.request.prompt_ids),
            [n if done else n + 1 for n, done in zip(sequence.lengths, sequence.done, strict=True)],
        ) - len(sequence.pages)
        while need > self._pages.num_free:
            victim = max(self._running(), key=_service_order)
            self._preemptions += 1
            self._preempted_tokens += victim.num_to_prefill
            preempted.append(victim.request.request_id)
            self._release(victim)
            victim.running = False
            if victim is sequence:
                return
        sequence.pages.extend(self._pages.take(need))

    def _emit(self, sequence: NullSequence) -> None:
        request, params, c = sequence.request, sequence.request.params, self.config
        for choice, position in enumerate(sequence.lengths):
            if sequence.done[choice]:
                continue
            if not params.max_tokens:
                self._end(sequence, choice, FinishReason.LENGTH)
                continue
            token = pseudo_token(params.seed or 0, choice, position, c.first_id, c.vocab_size)
            sequence.lengths[choice] += 1
            sequence.num_prefilled += 1
            self._generated += 1
            reason, stop_id = None, None
            if position + 1 > params.min_tokens and token in params.stop_token_ids:
                reason, stop_id = FinishReason.STOP, token
            elif position + 1 >= params.max_tokens:
                reason = FinishReason.LENGTH
            sequence.done[choice] = reason is not None
            self._deltas.append(TokenDelta(request.request_id, choice, (token,), reason, stop_id))
        self._drop_if_done(sequence)

    def _end(
        self, sequence: NullSequence, choice: int, reason: FinishReason, error: Fault | None = None
    ) -> None:
        sequence.done[choice] = True
        delta = TokenDelta(sequence.request.request_id, choice, (), reason, error=error)
        self._deltas.append(delta)

    def _drop_if_done(self, sequence: NullSequence) -> None:
        if all(sequence.done):
            del self._sequences[sequence.request.request_id]
            self._release(sequence)
            sequence.running = False

    def _trip_fault(self, sequence: NullSequence) -> bool:
        c = self.config
        if sequence.crashes(c, self._running()):
            os.abort()
        while c.hang_id in sequence.faults:
            self._sleep(1.0)
        if c.fail_id not in sequence.faults:
            return False
        for choice, done in enumerate(sequence.done):
            if not done:
                fault = Fault(FaultCode.ENGINE, "planted fault")
                self._end(sequence, choice, FinishReason.FAILED, fault)
        self._drop_if_done(sequence)
        return True

    def _release(self, sequence: NullSequence) -> None:
        self._pages.release(sequence.pages)
        sequence.pages = []
        sequence.num_prefilled = 0

    def _pace(self) -> None:
        """Wait until the next step is due."""
        rate, total_rate = self.config.tokens_per_s, self.config.total_tokens_per_s
        step_s = 1.0 / rate if rate > 0 else 0.0
        if total_rate > 0:
            step_s = max(step_s, max(1, len(self._running())) / total_rate)
        if step_s == 0:
            return
        now = self._clock()
        if self._next_step_at > now:
            self._sleep(self._next_step_at - now)
        self._next_step_at = max(self._next_step_at, now) + step_s


def _service_order(sequence: NullSequence) -> tuple[int, int]:
    return sequence.request.priority, sequence.order
