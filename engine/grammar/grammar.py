"""Grammars over tokens: compile a constraint once, follow it once per sequence."""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

import torch
from llguidance import LLMatcher

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.limits import GrammarLimits, too_slow
from tokenbus.engine.grammar.translation import library_grammar, reason_of
from tokenbus.engine.grammar.vocabulary import GrammarVocabulary
from tokenbus.engine.sampling.bitmask import bitmask_width

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llguidance import LLTokenizer
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.types import GrammarSpec


class GrammarMatcher:
    """One sequence's place in a grammar.

    `mask` and `accept` use processor time, of which one token may have so much.
    """

    def __init__(self, matcher: LLMatcher, width: int, source: CompiledGrammar) -> None:
        """Take over a matcher of `source`; `width` is in int32 words of the mask."""
        self._matcher = matcher
        self._width = width
        self.source = source

    @property
    def is_finished(self) -> bool:
        """True if nothing but the end of the sequence may follow."""
        return self._matcher.is_stopped()

    @property
    def is_accepting(self) -> bool:
        """True if the output may end here."""
        return self._matcher.is_accepting()

    @property
    def is_broken(self) -> bool:
        """True if the matcher is in its error state, which it never leaves.

        Matchers of one grammar share what the library has found out about it, a limit that they
        reached included: another compilation of the same grammar may go on where this one is stuck.
        """
        return self._matcher.is_error()

    def mask(self) -> Tensor:
        """Return the tokens that may come next, [W] int32, one bit each, on the CPU.

        The end of the sequence is among them where the grammar may end. May run on any thread, but
        not beside `accept` of the same matcher.
        Raises: GrammarRejected if the grammar exceeds its limits here.
        """
        begins = time.thread_time()
        packed = bytearray(self._matcher.compute_bitmask())
        self._check(begins)
        return torch.frombuffer(packed, dtype=torch.int32)[: self._width]

    def accept(self, token_id: int) -> None:
        """Advance by one token.

        Raises: GrammarRejected if the grammar does not allow it here, or exceeds its limits.
        """
        begins = time.thread_time()
        is_taken = self._matcher.consume_token(token_id)
        self._check(begins)
        if not is_taken:
            raise GrammarRejected("grammar", f"token {token_id} does not satisfy the grammar")

    def forced_tokens(self) -> list[int]:
        """Return the tokens that have no alternative from here on; they are not yet accepted.

        Raises: GrammarRejected if the grammar exceeds its limits here.
        """
        begins = time.thread_time()
        forced: list[int] = self._matcher.compute_ff_tokens()
        self._check(begins)
        return forced

    def fork(self) -> GrammarMatcher:
        """Return an independent matcher at the same place."""
        return GrammarMatcher(self._matcher.deep_copy(), self._width, self.source)

    def _check(self, began_s: float) -> None:
        """Raise if the library gave up, or took longer than one token may."""
        spent_s = time.thread_time() - began_s
        self.source.spent_s += spent_s
        if self._matcher.is_error():
            raise GrammarRejected("grammar", reason_of(self._matcher.get_error()))
        if spent_s * 1000 > self.source.limits.token_ms:
            raise GrammarRejected("grammar", too_slow(spent_s * 1000, self.source.limits))


class CompiledGrammar:
    """A compiled constraint; any number of sequences follow it.

    `spent_s` is the processor time of all their masks: the library's memory grows with it.
    """

    def __init__(self, prototype: LLMatcher, width: int, limits: GrammarLimits) -> None:
        """Keep a matcher at the start, of which sequences get copies."""
        self._prototype = prototype
        self._width = width
        self.limits = limits
        self.spent_s = 0.0

    def matcher(self, output_ids: Iterable[int] = ()) -> GrammarMatcher:
        """Return a matcher after these tokens: the start, or where an earlier owner left off.

        Raises: GrammarRejected if the tokens do not satisfy the grammar.
        """
        matcher = GrammarMatcher(self._prototype.deep_copy(), self._width, self)
        for token_id in output_ids:
            matcher.accept(token_id)
        return matcher


class GrammarCompiler:
    """Compiles constraints for one tokenizer; safe to call from several threads.

    What nobody has tried before may take any time: see `trial`.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        limits: GrammarLimits | None = None,
    ) -> None:
        """Read the vocabulary.

        Args:
            vocab_size: of the model, which may pad that of the tokenizer.
        Raises: GrammarRejected if the tokenizer is not one of the tokenizers library.
        """
        self.limits = limits or GrammarLimits()
        self.vocabulary = GrammarVocabulary.of(tokenizer, vocab_size, eos_token_ids)
        self._width = bitmask_width(vocab_size)
        self._lock = Lock()
        self._tokenizer: LLTokenizer | None = None

    def warm_up(self) -> None:
        """Build what is shared by all grammars, which takes a second for 150k tokens."""
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = self.vocabulary.build()

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Compile a constraint.

        Raises: GrammarRejected with the reason; a JSON-schema keyword is named.
        """
        try:
            return self.compile_translated(library_grammar(spec, self.limits))
        except GrammarRejected as error:
            message = str(error).removeprefix(f"{error.field}: ")
            raise GrammarRejected("grammar", f"{spec.kind.value}: {message}") from error

    def compile_translated(self, grammar: str) -> CompiledGrammar:
        """Compile a constraint in the library's form.

        Raises: GrammarRejected with the reason.
        """
        self.warm_up()
        assert self._tokenizer is not None
        prototype = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self.limits.of_library)
        if prototype.is_error():
            raise GrammarRejected(
                "grammar", f"does not compile: {reason_of(prototype.get_error())}"
            )
        return CompiledGrammar(prototype, self._width, self.limits)
