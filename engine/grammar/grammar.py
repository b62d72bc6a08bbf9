"""Grammars over tokens: compile a constraint once, follow it once per sequence."""

from __future__ import annotations

import json
from collections import OrderedDict
from concurrent.futures import Future
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.hf import from_tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.json_schema import JSON_OPTIONS, enforceable_schema
from tokenbus.engine.sampling.bitmask import bitmask_width
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

# Compiled grammars kept per tokenizer; one holds some 10 kB to 1 MB.
_CACHE_SIZE = 256
# Spells the end of sequence of tokenizers that have none.
_END = "<|tokenbus end|>"
# Larger sources are refused before they are parsed.
_MAX_SOURCE_BYTES = 1 << 20


class GrammarMatcher:
    """One sequence's place in a grammar."""

    def __init__(self, matcher: LLMatcher, width: int) -> None:
        """Take over a matcher; `width` is in int32 words of the mask."""
        self._matcher = matcher
        self._width = width

    @property
    def is_finished(self) -> bool:
        """True if nothing but the end of the sequence may follow."""
        return self._matcher.is_stopped()

    @property
    def is_accepting(self) -> bool:
        """True if the output may end here."""
        return self._matcher.is_accepting()

    def mask(self) -> Tensor:
        """Return the tokens that may come next, [W] int32, one bit each, on the CPU.

        The end of the sequence is among them where the grammar may end. May run on any thread, but
        not beside `accept` of the same matcher.
        Raises: GrammarRejected if the grammar exceeds the parser's limits here.
        """
        packed = bytearray(self._matcher.compute_bitmask())
        self._check()
        return torch.frombuffer(packed, dtype=torch.int32)[: self._width]

    def accept(self, token_id: int) -> None:
        """Advance by one token.

        Raises: GrammarRejected if the grammar does not allow it here.
        """
        if not self._matcher.consume_token(token_id):
            self._check()
            raise GrammarRejected("grammar", f"token {token_id} does not satisfy the grammar")

    def forced_tokens(self) -> list[int]:
        """Return the tokens that have no alternative from here on; they are not yet accepted."""
        forced: list[int] = self._matcher.compute_ff_tokens()
        return forced

    def fork(self) -> GrammarMatcher:
        """Return an independent matcher at the same place."""
        return GrammarMatcher(self._matcher.deep_copy(), self._width)

    def _check(self) -> None:
        """Raise if the matcher is in its error state, which it never leaves."""
        if self._matcher.is_error():
            raise GrammarRejected("grammar", _first_line(self._matcher.get_error()))


class CompiledGrammar:
    """A compiled constraint; any number of sequences follow it."""

    def __init__(self, prototype: LLMatcher, width: int) -> None:
        """Keep a matcher at the start, of which sequences get copies."""
        self._prototype = prototype
        self._width = width

    def matcher(self, output_ids: Iterable[int] = ()) -> GrammarMatcher:
        """Return a matcher after these tokens: the start, or where an earlier owner left off.

        Raises: GrammarRejected if the tokens do not satisfy the grammar.
        """
        matcher = GrammarMatcher(self._prototype.deep_copy(), self._width)
        for token_id in output_ids:
            matcher.accept(token_id)
        return matcher


class GrammarCompiler:
    """Compiles constraints for one tokenizer, each once; safe to call from several threads."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
    ) -> None:
        """Read the vocabulary; takes about a second for 150k tokens.

        Args:
            vocab_size: of the model, which may pad that of the tokenizer.
        Raises: GrammarRejected if the tokenizer is not one of the tokenizers library.
        """
        if not isinstance(tokenizer, PreTrainedTokenizerFast):
            name = type(tokenizer).__name__
            raise GrammarRejected("grammar", f"not possible with the slow tokenizer {name}")
        self._tokenizer = _library_tokenizer(
            tokenizer, max(vocab_size, len(tokenizer)), list(eos_token_ids)
        )
        self._width = bitmask_width(vocab_size)
        self._limits = LLParserLimits(verbose_errors=False)
        self._lock = Lock()
        self._cache: OrderedDict[GrammarSpec, Future[CompiledGrammar]] = OrderedDict()

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """Compile a constraint, or wait for the thread that does.

        Raises: GrammarRejected with the reason; a JSON-schema keyword is named.
        """
        with self._lock:
            cached = self._cache.get(spec)
            compiled = cached or Future()
            self._cache[spec] = compiled
            self._cache.move_to_end(spec)
            if len(self._cache) > _CACHE_SIZE:
                self._cache.popitem(last=False)
        if cached is None:
            try:
                compiled.set_result(self._compile(spec))
            except BaseException as error:  # a panic of the library too: others may be waiting
                compiled.set_exception(error)
        return compiled.result()

    def _compile(self, spec: GrammarSpec) -> CompiledGrammar:
        prototype = LLMatcher(
            self._tokenizer, _source_grammar(spec), log_level=0, limits=self._limits
        )
        if prototype.is_error():
            reason = _first_line(prototype.get_error())
            raise GrammarRejected("grammar", f"{spec.kind.value} does not compile: {reason}")
        return CompiledGrammar(prototype, self._width)


def compile_grammar(
    spec: GrammarSpec,
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    eos_token_ids: tuple[int, ...],
) -> CompiledGrammar:
    """Compile a constraint with the compiler of this tokenizer.

    Raises: GrammarRejected with the reason.
    """
    return _compiler_of(tokenizer, vocab_size, eos_token_ids).compile(spec)


@lru_cache(maxsize=4)
def _compiler_of(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_ids: tuple[int, ...]
) -> GrammarCompiler:
    """Return the compiler of a tokenizer; a process serves few models."""
    return GrammarCompiler(tokenizer, vocab_size, eos_token_ids)


def _library_tokenizer(
    tokenizer: PreTrainedTokenizerFast, num_ids: int, eos_token_ids: list[int]
) -> LLTokenizer:
    """Wrap a tokenizer for the library, which wants an end of sequence.

    A model without one gets an id behind its own: its output ends where the grammar leaves nothing
    else, or by length.
    """
    if eos_token_ids:
        return from_tokenizer(tokenizer, n_vocab=num_ids, eos_token=eos_token_ids)
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_padding()
    backend.no_truncation()
    backend.add_special_tokens([_END])
    end_id = backend.token_to_id(_END)
    assert end_id is not None
    return LLTokenizer(backend.to_str(), n_vocab=max(num_ids, end_id + 1), eos_token=[end_id])


def _first_line(message: str) -> str:
    """Return what an error says, without the dump of the parser's state that may follow."""
    return message.partition("\n<state>")[0].strip()


def _source_grammar(spec: GrammarSpec) -> str:
    """Translate a constraint into the library's form.

    Raises: GrammarRejected if the source is too long, not JSON where it must be, or of a schema
        that would not be enforced.
    """
    if len(spec.source) > _MAX_SOURCE_BYTES:
        raise GrammarRejected("grammar", f"the source is longer than {_MAX_SOURCE_BYTES} bytes")
    if spec.kind is GrammarKind.JSON_SCHEMA:
        schema = enforceable_schema(_parsed(spec))
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_OPTIONS)
    if spec.kind is GrammarKind.CHOICE:
        choices = _parsed(spec)
        is_texts = isinstance(choices, list) and all(isinstance(text, str) for text in choices)
        if not is_texts or not choices:
            raise GrammarRejected("grammar", "choice must be a JSON list of one or more strings")
        # Lark's string literals are those of JSON.
        return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices)))
    if spec.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(spec.source)
    return LLMatcher.grammar_from_lark(spec.source)


def _parsed(spec: GrammarSpec) -> Any:
    """Parse the source as JSON."""
    try:
        return json.loads(spec.source)
    except (ValueError, RecursionError) as error:
        raise GrammarRejected("grammar", f"{spec.kind.value} is not JSON: {error}") from error
