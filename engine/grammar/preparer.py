"""Grammars get ready beside the batch: tried, compiled, and taken to where a sequence stands.

A grammar that nobody has tried yet goes to the prober process first, in turn with those of other
tenants. Only what passes is compiled in this process, and kept for the next who asks for it.
Outcomes are values: nothing that a grammar does raises in the thread of the engine.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from threading import Lock, Thread
from typing import TYPE_CHECKING, TypeVar

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.grammar.grammar_cache import GrammarCache, RefusalCache
from tokenbus.engine.grammar.prober_link import ProberLink
from tokenbus.engine.grammar.tenant_queue import TenantQueue, TenantThreads
from tokenbus.engine.grammar.unlocked import UnlockedAccept

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.grammar.grammar import CompiledGrammar, GrammarMatcher, NextTokens
    from tokenbus.engine.grammar.limits import GrammarLimits
    from tokenbus.engine.types import GrammarSpec

T = TypeVar("T")

# Threads for masks, of which one tenant has two at a time. Masks are fast and bounded, and the
# library lets them run side by side.
_NUM_MASK_THREADS = 3
# Trials at a time: two, so that those of tenants whose trials take long hold up nobody else's, more
# on many cores.
_LEAST_LANES, _MOST_LANES, _CORES_PER_LANE = 2, 4, 4


@dataclass(frozen=True, slots=True)
class ReadyGrammar:
    """A matcher at the place of its sequence, and the mask of the next token.

    `forced` are the tokens that it has accepted on the way, because they had no alternative.
    """

    matcher: GrammarMatcher
    mask: Tensor
    forced: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class FailedGrammar:
    """Why a grammar cannot go on."""

    reason: str


GrammarOutcome = ReadyGrammar | FailedGrammar


@dataclass(frozen=True, slots=True)
class _Order:
    """What is to be prepared; `is_fresh` asks for a compilation that nobody shares."""

    spec: GrammarSpec
    tenant: str
    priority: int
    output_ids: list[int]
    is_fresh: bool = False
    future: Future[GrammarOutcome] = field(default_factory=Future)


class GrammarPreparer:
    """Prepares grammars for one tokenizer; its threads and its process start on first use."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        limits: GrammarLimits,
    ) -> None:
        """Raises: GrammarRejected if the tokenizer is not one of the tokenizers library."""
        self._compiler = GrammarCompiler(
            tokenizer,
            vocab_size,
            eos_token_ids,
            limits,
            unlocked=UnlockedAccept(_NUM_MASK_THREADS),
        )
        self._cache = GrammarCache()
        self._refusals = RefusalCache()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        self._num_lanes = min(_MOST_LANES, max(_LEAST_LANES, cores // _CORES_PER_LANE))
        self._prober = ProberLink(self._compiler.vocabulary, limits, self._num_lanes)
        self._queue: TenantQueue[_Order] = TenantQueue(self._num_lanes, keeps_thread=True)
        self._mask_threads = TenantThreads(_NUM_MASK_THREADS)
        self._lock = Lock()
        self._threads: list[Thread] = []

    def warm_up(self) -> None:
        """Build what all grammars share; the interpreter does nothing else meanwhile."""
        self._compiler.warm_up()

    def prepare(
        self, spec: GrammarSpec, tenant: str, priority: int, output_ids: list[int]
    ) -> Future[GrammarOutcome]:
        """Begin to prepare a grammar for a sequence that has these tokens; known ones at once."""
        order = _Order(spec, tenant, priority, output_ids)
        known = self._cache.get(spec, tenant)
        if known is None:
            self._put(order)
        else:
            work = partial(self._serve_known, order, known)
            self._mask_threads.submit(tenant, priority, work)
        return order.future

    def at_start(self, spec: GrammarSpec, tenant: str) -> ReadyGrammar | None:
        """Return a known grammar at its start, if its first mask is known too."""
        known = self._cache.get(spec, tenant)
        matcher = None if known is None else known.matcher()
        mask = None if matcher is None else matcher.known_mask()
        return None if matcher is None or mask is None else ReadyGrammar(matcher, mask)

    def prepare_anew(
        self,
        spec: GrammarSpec,
        tenant: str,
        priority: int,
        output_ids: list[int],
        stuck: CompiledGrammar,
    ) -> Future[GrammarOutcome]:
        """Begin to prepare a grammar whose shared compilation is stuck; nobody gets that again."""
        self._cache.drop(spec, stuck)
        order = _Order(spec, tenant, priority, output_ids, is_fresh=True)
        self._put(order)
        return order.future

    def next_mask(
        self,
        matcher: GrammarMatcher,
        find: Callable[[], NextTokens],
        tenant: str,
        priority: int,
    ) -> Future[GrammarOutcome]:
        """Begin to find the next tokens of a matcher, see `GrammarMatcher`."""
        return self.begin(partial(_outcome, partial(_next, matcher, find)), tenant, priority)

    def begin(self, work: Callable[[], T], tenant: str, priority: int) -> Future[T]:
        """Begin work with masks in a thread of a tenant."""
        return self._mask_threads.submit(tenant, priority, work)

    def close(self) -> None:
        """Stop threads and process; what is under way comes to nothing."""
        self._queue.close()
        self._prober.close()
        self._mask_threads.close()

    def _put(self, order: _Order) -> None:
        self._queue.put(order.tenant, order.priority, order)
        with self._lock:
            if self._threads:
                return
            self._threads = [
                Thread(target=self._serve, args=(lane,), name=f"grammar-{lane}", daemon=True)
                for lane in range(self._num_lanes)
            ]
        for thread in self._threads:
            thread.start()

    def _serve_known(self, order: _Order, known: CompiledGrammar) -> None:
        """Take a grammar that is kept to the place of its sequence."""
        outcome = _outcome(lambda: _at(known, order.output_ids))
        if isinstance(outcome, FailedGrammar):
            # It has a first mask, or it would not be kept: others have led it to a limit since.
            self._cache.drop(order.spec, known)
            self._put(order)
        elif order.future.set_running_or_notify_cancel():
            order.future.set_result(outcome)

    def _serve(self, lane: int) -> None:
        """Prepare what is queued, in the thread of a lane."""
        with suppress(OSError):  # A process that cannot be started fails the orders.
            self._prober.start()
        while (taken := self._queue.take()) is not None:
            tenant, order = taken
            begins = time.monotonic()
            if order.future.set_running_or_notify_cancel():
                order.future.set_result(_outcome(partial(self._ready, order, lane)))
            self._queue.finish(tenant, time.monotonic() - begins)

    def _ready(self, order: _Order, lane: int) -> ReadyGrammar:
        known = None if order.is_fresh else self._cache.get(order.spec, order.tenant)
        return _at(known or self._compiled(order, lane), order.output_ids)

    def _compiled(self, order: _Order, lane: int) -> CompiledGrammar:
        """Try a grammar, then compile it here.

        Raises: GrammarRejected with the reason.
        """
        spec = order.spec
        reason = self._refusals.get(spec)
        if reason is None:
            # While the prober starts, on first use, this process gets ready too.
            self._compiler.warm_up()
            verdict = self._prober.try_grammar(spec, lane)
            reason = verdict.reason
            if not reason:
                grammar = self._compiler.compile_translated(verdict.grammar, spec.watched)
                if not order.is_fresh:
                    self._cache.put(spec, order.tenant, grammar, verdict.num_bytes)
                return grammar
            if verdict.is_lasting:
                self._refusals.put(spec, reason)
        raise GrammarRejected("grammar", reason)


def _at(grammar: CompiledGrammar, output_ids: list[int]) -> ReadyGrammar:
    matcher = grammar.matcher(output_ids)
    return ReadyGrammar(matcher, matcher.mask())


def _next(matcher: GrammarMatcher, find: Callable[[], NextTokens]) -> ReadyGrammar:
    found = find()
    return ReadyGrammar(matcher, found.mask, found.forced)


def _outcome(work: Callable[[], ReadyGrammar]) -> GrammarOutcome:
    """Return what comes of the work, whatever it raises: panics of the library are no Exception."""
    try:
        return work()
    except GrammarRejected as error:
        return FailedGrammar(str(error).removeprefix(f"{error.field}: "))
    except BaseException as error:  # A panic of the library too.
        said = " ".join(str(error).split())
        return FailedGrammar(f"the grammar library failed: {type(error).__name__}: {said}")
