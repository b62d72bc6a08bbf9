"""Grammars beside the batch: prepared, masked and advanced off the critical path.

A constrained sequence takes part in a step only when its last token was read back and the mask of
the next one is there. Both the first mask and every later one are computed by threads; a step waits
for them as long as waiting is cheaper than going without, and no longer.
"""

from __future__ import annotations

from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, CancelledError, Future, wait
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.execution.draft_walk import MASK_WAIT_S, DraftMasks, DraftWalk
from tokenbus.engine.sampling.bitmask import leaves_one
from tokenbus.engine.scheduling.sequence import SequenceState
from tokenbus.engine.types import Fault, FaultCode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.config import EngineConfig
    from tokenbus.engine.containment import Containment
    from tokenbus.engine.grammar.preparer import GrammarOutcome, GrammarPreparer, ReadyGrammar
    from tokenbus.engine.scheduling.plan import StepPlan
    from tokenbus.engine.scheduling.sequence import Sequence
    from tokenbus.engine.types import EngineLimits, GrammarSpec
T = TypeVar("T")


class ConstrainedRows:
    """The grammars of all constrained sequences."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        limits: EngineLimits,
        containment: Containment[Sequence],
        config: EngineConfig,
    ) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._containment = containment
        self._config = config
        self._preparer: GrammarPreparer | None = None
        self._under_way: dict[Sequence, Future[GrammarOutcome]] = {}
        self._masks: dict[Sequence, Tensor] = {}
        self._prepared_anew: set[Sequence] = set()
        # Drawn tokens that are accepted with the next mask, where that takes long.
        self._drawn: dict[Sequence, int] = {}
        self._along: dict[Sequence, DraftMasks] = {}

    def warm_up(self) -> None:
        """Build what all grammars share, where the model and the installation allow grammars.

        It holds the interpreter, for a second with 150k tokens: before anything runs nobody waits.
        """
        with suppress(GrammarRejected, ModuleNotFoundError):
            self._ready_preparer().warm_up()

    def prepare(self, seq: Sequence, spec: GrammarSpec) -> None:
        """Start to prepare; the sequence is admitted once that is done.

        Raises: GrammarRejected if the model has no tokenizer, or not a fast one.
        """
        preparer = self._ready_preparer()
        seq.grammar = spec
        seq.needs_tokens = True
        request = seq.request
        known = None if seq.num_output else preparer.at_start(spec, request.tenant)
        if known is not None and not known.matcher.is_finished:
            self._take(seq, known)
            return
        self._begin(seq, preparer.prepare(spec, request.tenant, request.priority, _output_ids(seq)))

    def take_prepared(self) -> Iterator[tuple[Sequence, tuple[int, ...]]]:
        """Take what has come of the work under way.

        A failure becomes the fault of its sequence. Yields: the others, with the tokens that are
        forced behind those that they have; some are complete with them, see `is_complete`.
        """
        if not self._under_way:
            return
        running = [
            future
            for seq, future in self._under_way.items()
            if seq.state is SequenceState.RUNNING and not seq.num_inflight
        ]
        _wait_a_little(running, ALL_COMPLETED)
        for seq, future in list(self._under_way.items()):
            if not future.done() or self._under_way.pop(seq, None) is None:
                continue
            taken = None
            with self._containment.guard(seq, "its grammar was prepared", FaultCode.GRAMMAR):
                taken = self._take(seq, future.result())
            if taken is not None:
                yield seq, taken.forced

    def wait(self) -> None:
        """Wait a little for some work under way, where a step would have nothing else to do."""
        _wait_a_little(list(self._under_way.values()), FIRST_COMPLETED)

    def masks(self, plan: StepPlan) -> dict[int, Tensor]:
        """Return the packed mask of each constrained row that draws one token in this step.

        A row whose mask cannot be had has failed and is not among them.
        """
        masks = {}
        for seq in plan.sampled():
            if seq.grammar is not None and seq.row is not None:
                with self._containment.guard(seq, "its grammar was applied", FaultCode.GRAMMAR):
                    mask = masks[seq.row] = self._masks.pop(seq)
                    if seq.request.params.logprobs is not None:
                        seq.draws_forced = (leaves_one(mask),)
        return masks

    def draft_masks(self, plan: StepPlan) -> dict[int, DraftMasks]:
        """Begin to make the masks of constrained rows with a draft."""
        masks = {}
        for chunk in plan.drafted():
            seq = chunk.seq
            if seq.matcher is not None and seq.row is not None:
                with self._containment.guard(seq, "its grammar was applied", FaultCode.GRAMMAR):
                    params = seq.request.params
                    first = None if params.bad_words else params.min_tokens - seq.num_output
                    made = DraftMasks(seq.matcher.fork(), self._masks.pop(seq), chunk.draft, first)
                    self.begin(seq, made.make)
                    masks[seq.row] = self._along[seq] = made
        return masks

    def begin(self, seq: Sequence, work: Callable[[], T]) -> Future[T]:
        """Begin work for a sequence in a thread beside the engine."""
        request = seq.request
        return self._ready_preparer().begin(work, request.tenant, request.priority)

    def walk(self, seq: Sequence) -> DraftWalk:
        """Return a walk from where the grammar of a sequence stands; no mask is under way."""
        assert seq.matcher is not None
        return DraftWalk(seq.matcher.fork())

    def accept(self, seq: Sequence, token_id: int) -> None:
        """Advance by the last token of a step, or leave it to `await_next` where it takes long.

        Raises: GrammarRejected if the grammar cannot advance.
        """
        assert seq.matcher is not None
        if seq.matcher.accepts_quickly(token_id):
            self._accept(seq, token_id)
        else:
            self._drawn[seq] = token_id

    def accept_drafted(self, seq: Sequence, token_id: int, number: int) -> list[int]:
        """Advance by the token of this number, from 1, of a draft whose masks were taken.

        Returns: the tokens that are forced behind it. They are not accepted.
        Raises: GrammarRejected if the grammar cannot advance.
        """
        self._accept(seq, token_id)
        made = self._along.get(seq)
        most = _most_forced(seq)
        return made.forced_behind(number)[:most] if made is not None and most else []

    def is_complete(self, seq: Sequence) -> bool:
        """Tell whether nothing may follow the tokens that a sequence has."""
        if seq.matcher is None or seq in self._drawn:
            return False
        return seq.matcher.is_finished

    def await_next(self, seq: Sequence, forced: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Begin to find the forced tokens from here on and the mask behind them.

        `forced` are these if they are known, from a draft. Returns: them, if the mask is known too.
        """
        self._along.pop(seq, None)
        if seq in self._under_way:
            return ()
        assert seq.matcher is not None
        most = _most_forced(seq)
        drawn = self._drawn.pop(seq, None)
        known = None if drawn is not None or forced else seq.matcher.known_next(most)
        if known is None:
            request = seq.request
            work = partial(seq.matcher.tokens_behind, most, drawn, forced or None)
            future = self._ready_preparer().next_mask(
                seq.matcher, work, request.tenant, request.priority
            )
            self._begin(seq, future)
            return ()
        self._masks[seq] = known.mask
        return known.forced

    def drop(self, seq: Sequence) -> None:
        """Drop what is known of a sequence that ended."""
        future = self._under_way.pop(seq, None)
        if future is not None:
            future.cancel()
        self._masks.pop(seq, None)
        self._drawn.pop(seq, None)
        self._along.pop(seq, None)
        self._prepared_anew.discard(seq)

    def close(self) -> None:
        """Stop threads and process."""
        if self._preparer is not None:
            self._preparer.close()

    def _accept(self, seq: Sequence, token_id: int) -> None:
        assert seq.matcher is not None
        try:
            seq.matcher.accept(token_id)
        except GrammarRejected:
            if not self._prepare_anew(seq):
                raise

    def _begin(self, seq: Sequence, future: Future[GrammarOutcome]) -> None:
        self._under_way[seq] = future
        seq.awaits_grammar = True

    def _take(self, seq: Sequence, outcome: GrammarOutcome) -> ReadyGrammar | None:
        """Take an outcome; return it if the sequence can go on from it."""
        # Imported on use: an engine without grammars runs where llguidance is not installed.
        from tokenbus.engine.grammar.preparer import FailedGrammar

        if isinstance(outcome, FailedGrammar):
            if not self._prepare_anew(seq):
                self._containment.fail(seq, Fault(FaultCode.GRAMMAR, outcome.reason))
            return None
        seq.awaits_grammar = False
        seq.matcher = outcome.matcher
        self._masks[seq] = outcome.mask
        return outcome

    def _prepare_anew(self, seq: Sequence) -> bool:
        """Give a sequence whose grammar is stuck a fresh one, once; tell whether it gets one."""
        matcher = seq.matcher
        if matcher is None or not matcher.is_broken or seq in self._prepared_anew:
            return False
        assert seq.grammar is not None
        self._prepared_anew.add(seq)
        seq.matcher = None
        request = seq.request
        self._begin(
            seq,
            self._ready_preparer().prepare_anew(
                seq.grammar, request.tenant, request.priority, _output_ids(seq), matcher.source
            ),
        )
        return True

    def _ready_preparer(self) -> GrammarPreparer:
        if self._preparer is None:
            if self._tokenizer is None:
                raise GrammarRejected("grammar", "the model has no tokenizer")
            # Imported on use: see `_take`.
            from tokenbus.engine.grammar.limits import GrammarLimits
            from tokenbus.engine.grammar.preparer import GrammarPreparer

            config = self._config
            limits = GrammarLimits(
                source_bytes=config.grammar_source_bytes,
                states=config.grammar_states,
                items=config.grammar_items,
                compile_s=config.grammar_compile_s,
                token_ms=config.grammar_token_ms,
            )
            self._preparer = GrammarPreparer(
                self._tokenizer, self._limits.vocab_size, self._limits.eos_token_ids, limits
            )
        return self._preparer


def _wait_a_little(futures: list[Future[GrammarOutcome]], return_when: str) -> None:
    """Wait for futures, the first of them or all, no longer than a step waits for masks."""
    if len(futures) > 1:
        wait(futures, timeout=MASK_WAIT_S, return_when=return_when)
    elif futures:
        # One alone is waited for without the locks and events that a wait for several sets up.
        with suppress(TimeoutError, CancelledError):
            futures[0].exception(MASK_WAIT_S)


def _most_forced(seq: Sequence) -> int:
    """Return how many forced tokens a sequence may take now.

    None where a rule may forbid one of them: each is then drawn, under the rule.
    """
    params = seq.request.params
    if params.bad_words or seq.num_output < params.min_tokens:
        return 0
    return seq.max_length - len(seq.token_ids)


def _output_ids(seq: Sequence) -> list[int]:
    return list(seq.token_ids[seq.num_prompt :])
