"""Compiled grammars by their source, kept within a number of bytes; and, for a while, refusals."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenbus.engine.grammar.grammar import CompiledGrammar
    from tokenbus.engine.types import GrammarSpec

MAX_GRAMMARS = 512
MAX_BYTES = 512 << 20
# What a grammar takes at least, in bytes.
_LEAST_BYTES = 32 << 10
# The library keeps the states of the lexer that a mask finds: so many bytes per second of
# processor time, and so many per state. Both are upper bounds from patterns with many states.
_BYTES_PER_S, _BYTES_PER_STATE = 40 << 20, 2 << 10
_MAX_REFUSALS = 1024
_REFUSAL_S = 30.0


@dataclass(slots=True)
class _Kept:
    """One grammar, who asked for it last, and what it took when it was compiled."""

    grammar: CompiledGrammar
    tenant: str
    num_bytes: int

    def weight(self) -> int:
        """Estimate what it takes by now."""
        grammar = self.grammar
        grown = min(int(grammar.spent_s * _BYTES_PER_S), grammar.limits.states * _BYTES_PER_STATE)
        return max(self.num_bytes, _LEAST_BYTES) + grown + grammar.mask_bytes


class GrammarCache:
    """Good grammars, least recently used first; safe to call from several threads.

    Past its bounds it drops the oldest of the tenant that has the most in it, so that one who asks
    for ever new grammars drops his own.
    """

    def __init__(self, max_grammars: int = MAX_GRAMMARS, max_bytes: int = MAX_BYTES) -> None:
        self._max_grammars = max_grammars
        self._max_bytes = max_bytes
        self._lock = Lock()
        self._kept: OrderedDict[GrammarSpec, _Kept] = OrderedDict()

    def get(self, spec: GrammarSpec, tenant: str) -> CompiledGrammar | None:
        """Return a grammar that is kept; it counts for `tenant` from now on."""
        with self._lock:
            kept = self._kept.get(spec)
            if kept is None:
                return None
            self._kept.move_to_end(spec)
            kept.tenant = tenant
            return kept.grammar

    def put(self, spec: GrammarSpec, tenant: str, grammar: CompiledGrammar, num_bytes: int) -> None:
        """Keep a grammar that took `num_bytes` of memory."""
        with self._lock:
            self._kept[spec] = _Kept(grammar, tenant, num_bytes + 2 * len(spec.source))
            self._kept.move_to_end(spec)
            self._make_room()

    def drop(self, spec: GrammarSpec, grammar: CompiledGrammar) -> None:
        """Forget a grammar that has turned out to be stuck, unless it was replaced."""
        with self._lock:
            kept = self._kept.get(spec)
            if kept is not None and kept.grammar is grammar:
                del self._kept[spec]

    def __len__(self) -> int:
        """Count the grammars."""
        return len(self._kept)

    def _make_room(self) -> None:
        taken: dict[str, int] = {}
        weights = {spec: kept.weight() for spec, kept in self._kept.items()}
        for spec, kept in self._kept.items():
            taken[kept.tenant] = taken.get(kept.tenant, 0) + weights[spec]
        total = sum(taken.values())
        while len(self._kept) > 1 and (
            len(self._kept) > self._max_grammars or total > self._max_bytes
        ):
            largest = max(taken, key=taken.__getitem__)
            spec = next(spec for spec, kept in self._kept.items() if kept.tenant == largest)
            del self._kept[spec]
            taken[largest] -= weights[spec]
            total -= weights[spec]


class RefusalCache:
    """Why grammars were refused lately; bounded by number and time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._reasons: OrderedDict[bytes, tuple[float, str]] = OrderedDict()

    def get(self, spec: GrammarSpec) -> str | None:
        """Return why a grammar was refused, if that is not long ago."""
        with self._lock:
            expires_at, reason = self._reasons.get(_digest(spec), (0.0, ""))
            return reason if time.monotonic() < expires_at else None

    def put(self, spec: GrammarSpec, reason: str) -> None:
        """Note a refusal."""
        with self._lock:
            digest = _digest(spec)
            self._reasons[digest] = (time.monotonic() + _REFUSAL_S, reason)
            self._reasons.move_to_end(digest)
            if len(self._reasons) > _MAX_REFUSALS:
                self._reasons.popitem(last=False)


def _digest(spec: GrammarSpec) -> bytes:
    parts = (spec.kind, spec.source, spec.before, spec.watched)
    told = b"\0".join(part.encode(errors="surrogatepass") for part in parts)
    return hashlib.sha256(told).digest()
