"""A trial of a grammar: compiled, its first mask made, and a few random outputs begun.

It runs where it can be killed, because no limit of the grammar library bounds the time of all that
it does. What passes is cheap to compile once more beside the engine.
"""

from __future__ import annotations

import random
import resource
import signal
import sys
import time
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from llguidance import LLMatcher

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.json_schema import failing_place
from tokenbus.engine.grammar.limits import (
    TRIAL_MEMORY_BYTES,
    GrammarLimits,
    forced_run,
    too_slow,
)
from tokenbus.engine.grammar.translation import (
    Unreadable,
    library_grammar,
    parsed_source,
    reason_of,
    schema_grammar,
)
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from llguidance import LLTokenizer

T = TypeVar("T")

_NUM_WALKS = 3
_WALK_TOKENS = 16


class TrialStage(StrEnum):
    """What a trial is about; its process reports each before it begins."""

    COMPILE = "compiling it"
    FIRST_MASK = "the mask of its first token"
    TOKENS = "one of its first tokens"


@dataclass(frozen=True, slots=True)
class TrialVerdict:
    """How a trial ended.

    reason: why the grammar is refused, empty if it passed.
    grammar: it in the library's form.
    num_bytes: what the compiled grammar took of memory, about.
    is_lasting: whether another trial would end in the same way.
    """

    reason: str = ""
    grammar: str = ""
    num_bytes: int = 0
    is_lasting: bool = True


class _TooSlow(Exception):
    """One token took longer than it may."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a grammar is of no use: how far it comes, and the library's reason."""

    outcome: str
    reason: str

    def __str__(self) -> str:
        return f"{self.outcome}: {self.reason}"


class GrammarTrial:
    """One trial, in a process of its own."""

    def __init__(
        self,
        tokenizer: LLTokenizer,
        spec: GrammarSpec,
        limits: GrammarLimits,
        say: Callable[[TrialStage | TrialVerdict], None],
    ) -> None:
        self._tokenizer = tokenizer
        self._spec = spec
        self._limits = limits
        self._say = say

    def run(self) -> TrialVerdict:
        """Try the grammar; what the library raises is a verdict too."""
        before = _own_bytes()
        try:
            self._say(TrialStage.COMPILE)
            grammar = library_grammar(self._spec, self._limits)
            failure = self._failure(grammar)
            if failure:
                return TrialVerdict(self._located(failure))
        except Unreadable as error:
            return TrialVerdict(self._located(_unreadable(error)))
        except GrammarRejected as error:
            return TrialVerdict(_said(error))
        except _TooSlow as error:
            return TrialVerdict(str(error))
        except MemoryError:
            return TrialVerdict("it takes too much memory")
        except Exception as error:  # The library raises what it likes: a verdict.
            return TrialVerdict(reason_of(f"{type(error).__name__}: {error}"))
        return TrialVerdict(grammar=grammar, num_bytes=max(0, _own_bytes() - before))

    def _failure(self, grammar: str) -> _Failure | None:
        """Return why a grammar is of no use, if it is of none.

        A limit that only some outputs reach is not its fault. Raises: _TooSlow.
        """
        prototype = self._matcher(grammar)
        if prototype.is_error():
            has_place = self._spec.kind is GrammarKind.LARK
            reason = reason_of(prototype.get_error(), has_place=has_place)
            return _Failure("it does not compile", reason)
        self._say(TrialStage.FIRST_MASK)
        _, reason = self._mask(prototype)
        if reason:
            return _Failure("it allows no output", reason)
        self._say(TrialStage.TOKENS)
        reason = ""
        for seed in range(_NUM_WALKS):
            # Copies share the limit that one of them reached.
            matcher = self._matcher(grammar) if reason else prototype.deep_copy()
            reason = self._walk(matcher, seed)
            if not reason:
                return None
        return _Failure("no output gets past a few tokens", reason)

    def _matcher(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits.of_library)

    def _located(self, failure: _Failure) -> str:
        """Name the innermost part of a schema that fails for the same reason by itself."""
        kind = self._spec.kind
        if kind is not GrammarKind.JSON_SCHEMA:
            return f"{kind.value}: {failure}"
        # What is known holds if the time for the trial is over before the place is found.
        self._say(TrialVerdict(f"{kind.value}: {failure}"))
        self._say = _say_nothing
        place = failing_place(
            parsed_source(self._spec),
            lambda part: self._fails_alone(part, failure),
            self._limits.compile_s / 4,
        )
        return f"{kind.value} at {place}: {failure}"

    def _fails_alone(self, part: Any, failure: _Failure) -> bool:
        """Tell whether a part of a schema fails as the whole."""
        try:
            found = self._failure(schema_grammar(part))
        except Unreadable as error:
            found = _unreadable(error)
        except (GrammarRejected, _TooSlow, ValueError):
            return False
        return found is not None and found.reason == failure.reason

    def _walk(self, matcher: LLMatcher, seed: int) -> str:
        """Begin a random output; return why it cannot go on, empty if it can or is complete."""
        draw = random.Random(seed)
        for _ in range(_WALK_TOKENS):
            mask, reason = self._mask(matcher)
            if reason:
                return reason
            self._timed(partial(matcher.consume_token, _random_token(mask, draw)))
            forced = self._timed(partial(forced_run, matcher))
            if forced and not matcher.is_error():
                self._timed(partial(matcher.consume_tokens, forced))
            if matcher.is_error():
                return reason_of(matcher.get_error())
            if matcher.is_stopped():
                return ""
        return ""

    def _mask(self, matcher: LLMatcher) -> tuple[bytes, str]:
        """Return the mask of the next token, and why there is none."""
        mask = self._timed(matcher.compute_bitmask)
        if matcher.is_error():
            return mask, reason_of(matcher.get_error())
        return mask, "" if any(mask) else "nothing can satisfy it"

    def _timed(self, work: Callable[[], T]) -> T:
        begins = time.process_time()
        done = work()
        spent_ms = (time.process_time() - begins) * 1000
        if spent_ms > self._limits.token_ms:
            raise _TooSlow(too_slow(spent_ms, self._limits))
        return done


def bound_this_process(limits: GrammarLimits) -> None:
    """Have the kernel end this process when it has used up the limits of a trial.

    The signal of the timer is left to its default, so no code of this process has to run.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, limits.compile_s)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        most = _virtual_bytes() + TRIAL_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _say_nothing(what: TrialStage | TrialVerdict) -> None:
    """Keep to what was said last."""


def _said(error: GrammarRejected) -> str:
    return str(error).removeprefix(f"{error.field}: ")


def _unreadable(error: Unreadable) -> _Failure:
    return _Failure("it cannot be read", _said(error))


def _random_token(mask: bytes, draw: random.Random) -> int:
    """Return one of the set bits."""
    start = draw.randrange(len(mask))
    for offset in range(len(mask)):
        position = (start + offset) % len(mask)
        if byte := mask[position]:
            bits = [bit for bit in range(8) if byte >> bit & 1]
            return position * 8 + draw.choice(bits)
    raise ValueError("the mask is empty")


def _statm() -> list[int]:
    """Return the sizes of this process in pages: virtual, resident, shared; zeros if unknown."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - one small read
            return [int(field) for field in file.read().split()[:3]]
    except OSError:
        return [0, 0, 0]


def _virtual_bytes() -> int:
    return _statm()[0] * resource.getpagesize()


def _own_bytes() -> int:
    _, resident, shared = _statm()
    return (resident - shared) * resource.getpagesize()
