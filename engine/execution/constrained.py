"""Grammars beside the batch: compiled, masked and advanced off the critical path.

A constrained sequence takes part in a step only when its last token was read back, so that its mask
is known before the launch. The mask of the next token is computed by a thread as soon as the last
one was accepted; it is waited for only if the next launch comes first.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.sampling.bitmask import leaves_one
from tokenbus.engine.types import FaultCode

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.containment import Containment
    from tokenbus.engine.grammar.grammar import GrammarMatcher
    from tokenbus.engine.scheduling.plan import StepPlan
    from tokenbus.engine.scheduling.sequence import Sequence
    from tokenbus.engine.types import EngineLimits, GrammarSpec

_NUM_THREADS = 2


class ConstrainedRows:
    """The matchers of all constrained sequences."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        limits: EngineLimits,
        containment: Containment[Sequence],
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = limits.vocab_size
        self._eos_token_ids = limits.eos_token_ids
        self._containment = containment
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammar")
        self._masks: dict[Sequence, Future[Tensor]] = {}

    def prepare(self, seq: Sequence, spec: GrammarSpec) -> None:
        """Start compiling; the sequence is admitted once that is done.

        Raises: GrammarRejected if the model has no tokenizer.
        """
        if self._tokenizer is None:
            raise GrammarRejected("grammar", "the model has no tokenizer")
        seq.grammar = self._threads.submit(
            self._compile, spec, list(seq.token_ids[seq.num_prompt :])
        )

    def start(self, seq: Sequence) -> None:
        """Take over the compiled matcher when the sequence is first planned."""
        if seq.grammar is not None and seq.matcher is None:
            seq.matcher = seq.grammar.result()
            self._compute_mask(seq)

    def failure(self, seq: Sequence) -> str | None:
        """Return why the grammar of a sequence did not compile, if it did not."""
        if seq.grammar is None or not seq.grammar.done():
            return None
        error = seq.grammar.exception()
        return None if error is None else str(error)

    def is_complete(self, seq: Sequence) -> bool:
        """Tell whether the tokens that a sequence came with leave nothing to generate."""
        if seq.grammar is None or seq.matcher is not None or not seq.grammar.done():
            return False
        return seq.grammar.exception() is None and seq.grammar.result().is_finished

    def masks(self, plan: StepPlan) -> dict[int, Tensor]:
        """Return the packed mask of each constrained row that samples in this step.

        A row whose mask cannot be had has failed and is not among them.
        """
        masks = {}
        for seq in plan.sampled():
            if seq.grammar is None or seq.row is None:
                continue
            with self._containment.guard(seq, "its grammar was applied", FaultCode.GRAMMAR):
                self.start(seq)
                mask = masks[seq.row] = self._masks.pop(seq).result()
                if seq.request.params.logprobs is not None:
                    seq.draws_forced = leaves_one(mask)
        return masks

    def accept(self, seq: Sequence, token_id: int) -> list[int]:
        """Advance by a sampled token; return the tokens that are then left without a choice.

        Raises: GrammarRejected if the grammar cannot advance.
        """
        assert seq.matcher is not None
        seq.matcher.accept(token_id)
        forced = seq.matcher.forced_tokens()
        for forced_id in forced:
            seq.matcher.accept(forced_id)
        return forced

    def await_next(self, seq: Sequence) -> None:
        """Begin to compute the mask of the next token."""
        self._compute_mask(seq)

    def drop(self, seq: Sequence) -> None:
        """Drop what is known of a sequence that ended."""
        mask = self._masks.pop(seq, None)
        if mask is not None:
            mask.cancel()
        if seq.grammar is not None:
            seq.grammar.cancel()

    def close(self) -> None:
        """Stop the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _compile(self, spec: GrammarSpec, output_ids: list[int]) -> GrammarMatcher:
        # Imported on use: an engine without grammars runs where llguidance is not installed.
        from tokenbus.engine.grammar.grammar import compile_grammar

        assert self._tokenizer is not None
        return compile_grammar(
            spec, self._tokenizer, self._vocab_size, self._eos_token_ids
        ).matcher(output_ids)

    def _compute_mask(self, seq: Sequence) -> None:
        assert seq.matcher is not None
        if seq not in self._masks:
            self._masks[seq] = self._threads.submit(seq.matcher.mask)
