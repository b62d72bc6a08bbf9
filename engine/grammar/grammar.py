"""Grammars over tokens: compile a constraint once, follow it once per sequence.

It is one noun: a grammar as it is compiled, kept, and followed.
"""

from __future__ import annotations

import time
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from llguidance import LLMatcher

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.answer_watch import AnswerWatch
from tokenbus.engine.grammar.json_schema import failing_place
from tokenbus.engine.grammar.limits import WALL_PER_CPU, GrammarLimits, forced_run, too_slow
from tokenbus.engine.grammar.schema.key_watch import KeyRepeated, KeyWatch
from tokenbus.engine.grammar.schema.source_words import first_tokens
from tokenbus.engine.grammar.translation import (
    lets_keys_repeat,
    library_grammar,
    list_places,
    parsed_source,
    reason_of,
    schema_grammar,
)
from tokenbus.engine.grammar.vocabulary import GrammarVocabulary
from tokenbus.engine.grammar.watching.item_watch import ItemTable, ItemWatch
from tokenbus.engine.grammar.watching.watched_answer import WatchedAnswer
from tokenbus.engine.sampling.bitmask import bitmask_width
from tokenbus.engine.types import GrammarKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from llguidance import LLTokenizer
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.grammar.unlocked import UnlockedAccept
    from tokenbus.engine.types import GrammarSpec

# Masks that a grammar keeps, and how many tokens an output may have for its place to be kept.
# Labels and the heads of objects are the same in every output; what follows hardly ever is.
_MAX_PLACES, _MAX_DEPTH = 64, 16
# Tokens of a forced run that is kept: longer ones are rare, and found again for each output.
_MAX_KEPT_RUN = 64
# Processor time from which on a call of the library is long, in seconds. Ordinary masks take 0.1 to
# 1 ms. To accept a token takes 2 us, and where that is long its mask was: it has tried the token.
_LONG_S = 0.002


class NextTokens(NamedTuple):
    """Tokens that a matcher has accepted because they were forced, and the mask behind them."""

    forced: tuple[int, ...]
    mask: Tensor


class NotCompiled(GrammarRejected):
    """The library does not compile a grammar that was translated."""


class GrammarMatcher:
    """One sequence's place in a grammar.

    `mask` and `accept` use processor time, of which one token may have so much. A matcher of the
    library is copied with the first token that is accepted: of an output of one token never.

    What takes long is no work for the thread of the engine, nor for one that holds the lock of the
    interpreter meanwhile: see `accepts_quickly`.
    """

    def __init__(
        self,
        source: CompiledGrammar,
        matcher: LLMatcher | None = None,
        path: tuple[int, ...] | None = (),
        watch: KeyWatch | AnswerWatch | None = None,
    ) -> None:
        """Stand at the start of `source`, or where a matcher of it stands.

        `path` are the tokens accepted so far, None if these are too many to be kept. `watch` has
        the keys of its objects and the items of its lists, if these have to be watched.
        """
        self.source = source
        self._copy = matcher
        self._path = path
        self._watch = source.new_watch() if watch is None else watch
        self._took_long = False

    @property
    def is_slow(self) -> bool:
        """True if the mask here, or the way here, took the library long."""
        return self._took_long or (self._path is not None and self._path in self.source.slow)

    def accepts_quickly(self, token_id: int) -> bool:
        """Tell whether to accept a token, which the mask allows, is a matter of microseconds."""
        if not self.is_slow:
            return True
        return self._path is not None and (*self._path, token_id) in self.source.quick

    @property
    def is_finished(self) -> bool:
        """True if nothing but the end of the sequence may follow."""
        return (self._copy or self.source.prototype).is_stopped()

    @property
    def is_accepting(self) -> bool:
        """True if the output may end here."""
        return (self._copy or self.source.prototype).is_accepting()

    @property
    def is_broken(self) -> bool:
        """True if the matcher is in its error state, which it never leaves.

        Matchers of one grammar share what the library has found out about it, a limit that they
        reached included: another compilation of the same grammar may go on where this one is stuck.
        """
        return self._copy is not None and self._copy.is_error()

    def known_mask(self) -> Tensor | None:
        """Return the mask of the next token if it was computed before, for any sequence."""
        if self._path is None or self.is_broken:
            return None
        return self.source.masks.get(self._path)

    def mask(self) -> Tensor:
        """Return the tokens that may come next, [W] int32, one bit each, on the CPU.

        The end of the sequence is among them where the grammar may end. Nobody writes to it: it is
        everyone's who stands at the same place. May run on any thread, but not beside `accept` of
        the same matcher.
        Raises: GrammarRejected if the grammar exceeds its limits here.
        """
        known = self.known_mask()
        if known is not None:
            return known
        return self._watched(self._library_mask())

    def _library_mask(self) -> Tensor:
        """Return the mask without what the watch leaves out."""
        begins = time.thread_time()
        packed = bytearray(self._matcher.compute_bitmask())
        spent_s = time.thread_time() - begins
        self._check(spent_s)
        self._took_long = spent_s > _LONG_S
        return torch.frombuffer(packed, dtype=torch.int32)[: self.source.width]

    def _watched(self, mask: Tensor) -> Tensor:
        """Return a mask of the library without what has come already, and keep it."""
        if self._watch is not None:
            mask = self._watch.allowed(mask, self._matcher)
            if not mask.any():
                reason = "every key or item that may come next has come already"
                raise GrammarRejected("grammar", reason)
        if self._path is not None:
            self.source.keep(self._path, mask, is_slow=self._took_long)
        return mask

    def allows(self, token_id: int) -> bool:
        """Tell whether a token may come next, as far as the library knows: see `accept`."""
        return bool(self._matcher.validate_tokens([token_id]))

    def accept(self, token_id: int) -> None:
        """Advance by one token.

        Raises: GrammarRejected if the grammar does not allow it here, or exceeds its limits.
        """
        unlocked = self.source.unlocked
        if unlocked is None or self.accepts_quickly(token_id):
            begins = time.thread_time()
            is_taken = self._matcher.consume_token(token_id)
            took_s = spent_s = time.thread_time() - begins
        else:
            is_taken, took_s = unlocked(self._matcher, token_id)
            spent_s = took_s / WALL_PER_CPU
        self._check(spent_s)
        self._took_long = took_s > _LONG_S
        self._follow(token_id, is_taken=is_taken)
        if not self._took_long and self._path is not None:
            self.source.note_quick(self._path)

    def _follow(self, token_id: int, *, is_taken: bool) -> None:
        """Keep path and watch beside a token that the library was given."""
        if not is_taken:
            raise GrammarRejected("grammar", f"token {token_id} does not satisfy the grammar")
        if self._watch is not None:
            try:
                self._watch.accept(token_id)
            except KeyRepeated as error:
                raise GrammarRejected("grammar", str(error)) from error
        if self._path is not None:
            self._path = (*self._path, token_id) if len(self._path) < _MAX_DEPTH else None

    def forced_tokens(self) -> list[int]:
        """Return the tokens that have no alternative from here on; they are not yet accepted.

        There are none where they would be too many: see `limits.forced_run`.
        Raises: GrammarRejected if the grammar exceeds its limits here.
        """
        begins = time.thread_time()
        forced = forced_run(self._matcher)
        self._check(time.thread_time() - begins)
        return forced

    def known_next(self, most: int) -> NextTokens | None:
        """Accept the forced tokens from here on, if they and the mask behind them are known.

        Returns: what `next_tokens` does; None, and nothing is accepted, if it is not known.
        """
        if self._path is None or self.is_broken:
            return None
        run = self.source.runs.get(self._path) if most else ()
        if run is None or len(run) > _MAX_DEPTH:
            return None
        mask = self.source.masks.get((*self._path, *run[:most]))
        if mask is None:
            return None
        self._accept_run(run[:most])
        return NextTokens(run[:most], mask)

    def tokens_behind(
        self, most: int, drawn: int | None, run: tuple[int, ...] | None
    ) -> NextTokens:
        """Return what `next_tokens` does, behind tokens that are to be accepted first.

        Args:
            most: forced tokens at most.
            drawn: a token that was drawn here, if to accept it takes long as well.
            run: the tokens that are forced then, where they are known.
        Raises: as `next_tokens`.
        """
        if drawn is not None:
            self.accept(drawn)
        if run is not None:
            self._accept_run(run)
        if self.is_finished:
            # Nothing is drawn any more.
            return NextTokens(run or (), torch.zeros(self.source.width, dtype=torch.int32))
        return self.next_tokens(most) if run is None else NextTokens(run, self.mask())

    def next_tokens(self, most: int) -> NextTokens:
        """Accept the forced tokens from here on, `most` at most, and make the mask behind them.

        It takes too long for the thread of the engine, which may go on meanwhile.
        Raises: GrammarRejected if the grammar exceeds its limits on the way.
        """
        path, known = self._path, self.known_mask()
        # Where no place is kept, the watch looks at the mask that is drawn from alone.
        is_bare = path is None and most > 0
        mask = self._library_mask() if is_bare else self.mask()
        if not most:
            return NextTokens((), mask)
        run = None if path is None else self.source.runs.get(path)
        if run is None:
            if known is not None:
                # So that the bytes of the run are known, see `limits.forced_run`.
                self._matcher.compute_bitmask()
            run = tuple(self.forced_tokens())
            is_quick = self._accept_run(run[:most])
            is_kept = is_quick and len(run) <= min(most, _MAX_KEPT_RUN)
            if is_kept and path is not None and path in self.source.masks:
                self.source.runs[path] = run
        else:
            self._accept_run(run[:most])
        if self.is_finished:
            # Nothing is drawn any more.
            if self._path is not None:
                self.source.keep(self._path, mask)
        elif 0 < len(run) < most:
            mask = self.mask()
        elif is_bare and not run:
            mask = self._watched(mask)
        return NextTokens(run[:most], mask)

    def _accept_run(self, token_ids: tuple[int, ...]) -> bool:
        """Accept forced tokens, in one call where that is quick; tell whether it was.

        Raises: as `accept`.
        """
        if not token_ids:
            return True
        if self.is_slow:
            took_long = False
            for token_id in token_ids:
                self.accept(token_id)
                took_long = took_long or self._took_long
        else:
            begins = time.thread_time()
            is_taken = self._matcher.consume_tokens(list(token_ids))
            spent_s = time.thread_time() - begins
            self._check(spent_s)
            took_long = spent_s > _LONG_S
            for token_id in token_ids:
                self._follow(token_id, is_taken=is_taken)
        self._took_long = took_long
        return not took_long

    def fork(self) -> GrammarMatcher:
        """Return an independent matcher at the same place."""
        watch = None if self._watch is None else self._watch.copy()
        fork = GrammarMatcher(self.source, self._matcher.deep_copy(), self._path, watch)
        fork._took_long = self._took_long
        return fork

    @property
    def _matcher(self) -> LLMatcher:
        if self._copy is None:
            self._copy = self.source.prototype.deep_copy()
        return self._copy

    def _check(self, spent_s: float) -> None:
        """Raise if the library gave up, or took longer than one token may."""
        self.source.spent_s += spent_s
        if self._matcher.is_error():
            # The next sequence finds out whether others are stuck as well.
            self.source.drop_places()
            raise GrammarRejected("grammar", reason_of(self._matcher.get_error()))
        if spent_s * 1000 > self.source.limits.token_ms:
            raise GrammarRejected("grammar", too_slow(spent_s * 1000, self.source.limits))


class CompiledGrammar:
    """A compiled constraint; any number of sequences follow it.

    `prototype` stands at the start for ever. `masks` are those of the places that outputs came to
    first, by their tokens, and `runs` the tokens that are forced there. Of these places `slow` ones
    have masks that took long, from which those in `quick` were reached quickly all the same.
    `spent_s` is the processor time of all masks: the library's memory grows with it.
    """

    def __init__(
        self,
        prototype: LLMatcher,
        width: int,
        limits: GrammarLimits,
        watch: KeyWatch | AnswerWatch | None = None,
        words: Mapping[int, int] | None = None,
        unlocked: Callable[[LLMatcher, int], tuple[bool, float]] | None = None,
    ) -> None:
        """Keep a matcher at the start, of which sequences get copies, and a watch beside it.

        `width` is that of a mask in int32 words. `watch` is there if something may come twice.
        `words` are the first tokens of words that the source names, with their places in it.
        `unlocked` accepts a token for which others are not to wait: see `UnlockedAccept`.
        """
        self.unlocked = unlocked
        self.words = words or {}
        self._watch = watch
        self.prototype = prototype
        self.width = width
        self.limits = limits
        self.masks: dict[tuple[int, ...], Tensor] = {}
        self.runs: dict[tuple[int, ...], tuple[int, ...]] = {}
        self.slow: set[tuple[int, ...]] = set()
        self.quick: set[tuple[int, ...]] = set()
        self.spent_s = 0.0

    def new_watch(self) -> KeyWatch | AnswerWatch | None:
        """Return a watch over an output, if the grammar lets keys or items come twice."""
        return None if self._watch is None else self._watch.copy()

    @property
    def mask_bytes(self) -> int:
        """Count the bytes of the masks that are kept."""
        return len(self.masks) * self.width * torch.int32.itemsize

    def keep(self, path: tuple[int, ...], mask: Tensor, *, is_slow: bool = False) -> None:
        """Keep the mask of a place, while there is room, and whether it took long."""
        if len(self.masks) < _MAX_PLACES:
            self.masks[path] = mask
            if is_slow:
                self.slow.add(path)

    def note_quick(self, path: tuple[int, ...]) -> None:
        """Note that a place behind a slow one was reached quickly."""
        if path[:-1] in self.slow and len(self.quick) < _MAX_PLACES:
            self.quick.add(path)

    def drop_places(self) -> None:
        """Drop what is known of places."""
        for known in (self.masks, self.runs, self.slow, self.quick):
            known.clear()

    def matcher(self, output_ids: Iterable[int] = ()) -> GrammarMatcher:
        """Return a matcher after these tokens: the start, or where an earlier owner left off.

        Raises: GrammarRejected if the tokens do not satisfy the grammar.
        """
        matcher = GrammarMatcher(self)
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
        *,
        unlocked: UnlockedAccept | None = None,
    ) -> None:
        """Read the vocabulary.

        Args:
            vocab_size: of the model, which may pad that of the tokenizer.
            unlocked: what takes the tokens that take long, where other threads are not to wait.
        Raises: GrammarRejected if the tokenizer is not one of the tokenizers library.
        """
        self.limits = limits or GrammarLimits()
        self.vocabulary = GrammarVocabulary.of(tokenizer, vocab_size, eos_token_ids)
        self._width = bitmask_width(vocab_size)
        self._lock = Lock()
        self._tokenizer: LLTokenizer | None = None
        self._num_tokens = vocab_size
        self._table: ItemTable | None = None
        self._unlocked = unlocked

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
            grammar = library_grammar(spec, self.limits)
            return self.compile_translated(grammar, spec.watched)
        except GrammarRejected as error:
            message = str(error).removeprefix(f"{error.field}: ")
            place = ""
            if spec.kind is GrammarKind.JSON_SCHEMA and isinstance(error, NotCompiled):
                place = f" at {self._place(spec, message)}"
            raise GrammarRejected("grammar", f"{spec.kind.value}{place}: {message}") from error

    def _place(self, spec: GrammarSpec, message: str) -> str:
        """Return the pointer of the part of a schema that does not compile."""

        def fails(part: Any) -> bool:
            try:
                self.compile_translated(schema_grammar(part))
            except GrammarRejected as error:
                return str(error).endswith(message)
            return False

        return failing_place(parsed_source(spec), fails, self.limits.compile_s / 4)

    def compile_translated(self, grammar: str, watched: str = "") -> CompiledGrammar:
        """Compile a constraint in the library's form; `watched` is that of its spec.

        Raises: GrammarRejected with the reason.
        """
        self.warm_up()
        assert self._tokenizer is not None
        prototype = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self.limits.of_library)
        if prototype.is_error():
            raise NotCompiled("grammar", f"does not compile: {reason_of(prototype.get_error())}")
        watch = self._watch(grammar, watched)
        words = first_tokens(grammar, self._tokenizer.tokenize_str)
        unlocked = None
        if self._unlocked is not None:
            unlocked = partial(self._unlocked.accept, tokenizer=self._tokenizer)
        return CompiledGrammar(prototype, self._width, self.limits, watch, words, unlocked)

    def _watch(self, grammar: str, watched: str) -> KeyWatch | AnswerWatch | None:
        places = list_places(grammar)
        if watched:
            form = WatchedAnswer.parse(watched)
            is_needed = places is not None or form.barred
            if not is_needed and not lets_keys_repeat(grammar, is_watched=True):
                return None
            return AnswerWatch(self._token_table(), form, places)
        if places is not None:
            return ItemWatch(self._token_table(), places)
        return KeyWatch(self._token_table()) if lets_keys_repeat(grammar) else None

    def _token_table(self) -> ItemTable:
        """Return the bytes of all tokens, read once."""
        assert self._tokenizer is not None
        with self._lock:
            if self._table is None:
                decode = self._tokenizer.decode_bytes
                self._table = ItemTable([decode([one]) for one in range(self._num_tokens)])
            return self._table
