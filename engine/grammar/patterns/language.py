"""Regular languages of texts: combined as terms, read as automata, written as patterns.

A term is an id of its `Languages`, so that equal terms are one. Automata come from derivatives of
terms (Brzozowski 1964), patterns from the elimination of their states. All of it is bounded.
"""

from __future__ import annotations

import itertools
from typing import Any

from tokenbus.engine.grammar.patterns.pattern_tree import LAST, PatternRefused, Ranges

Term = int
# Terms of all derivatives of one language. The look-ahead of a decimal with 30 digits takes 4,000.
_MAX_TERMS = 60_000
# Derivatives of a language that take as long as a step of `StepBudget`.
DERIVED_A_STEP = 2
# Derivatives of all languages of one document: about a second.
_MAX_DERIVED = 300_000


class Languages:
    """Terms of languages, each made once."""

    def __init__(self) -> None:
        self._terms: list[tuple[Any, ...]] = []
        self._ids: dict[tuple[Any, ...], Term] = {}
        self._nullable: dict[Term, bool] = {}
        self._derived: dict[tuple[Term, int], Term] = {}
        self._machines: list[list[dict[int, Ranges]]] = []
        self.nothing = self._make("none")
        self.empty_text = self._make("empty")
        self.everything = self._make("repeat", self._make("chars", ((0, LAST),)), 0, None)

    def _make(self, *term: Any) -> Term:
        if term not in self._ids:
            if len(self._terms) >= _MAX_TERMS:
                raise PatternRefused("a pattern too complex to combine")
            self._ids[term] = len(self._terms)
            self._terms.append(term)
        return self._ids[term]

    def chars(self, ranges: Ranges) -> Term:
        """Return the texts of one character."""
        return self._make("chars", ranges) if ranges else self.nothing

    def text(self, text: str) -> Term:
        """Return one text alone."""
        term = self.empty_text
        for character in reversed(text):
            term = self.then(self.chars(((ord(character),) * 2,)), term)
        return term

    def then(self, first: Term, second: Term) -> Term:
        """Return texts of one language followed by texts of another."""
        if self.nothing in (first, second):
            return self.nothing
        if first == self.empty_text:
            return second
        if second == self.empty_text:
            return first
        kind, *parts = self._terms[first]
        if kind == "then":
            return self.then(parts[0], self.then(parts[1], second))
        return self._make("then", first, second)

    def either(self, terms: set[Term]) -> Term:
        """Return the texts of any of some languages."""
        flat: set[Term] = set()
        for term in terms:
            kind, *parts = self._terms[term]
            flat |= set(parts[0]) if kind == "either" else {term}
        flat.discard(self.nothing)
        if self.everything in flat or any(self.negated(term) in flat for term in flat):
            return self.everything
        if len(flat) <= 1:
            return flat.pop() if flat else self.nothing
        return self._make("either", frozenset(flat))

    def both(self, terms: set[Term]) -> Term:
        """Return the texts that all of some languages have."""
        flat: set[Term] = set()
        for term in terms:
            kind, *parts = self._terms[term]
            flat |= set(parts[0]) if kind == "both" else {term}
        flat.discard(self.everything)
        if self.nothing in flat or any(self.negated(term) in flat for term in flat):
            return self.nothing
        if len(flat) <= 1:
            return flat.pop() if flat else self.everything
        return self._make("both", frozenset(flat))

    def negated(self, term: Term) -> Term:
        """Return the texts that a language does not have."""
        if term == self.nothing:
            return self.everything
        if term == self.everything:
            return self.nothing
        kind, *parts = self._terms[term]
        return parts[0] if kind == "not" else self._make("not", term)

    def repeated(self, term: Term, least: int, most: int | None) -> Term:
        """Return texts of a language some times over."""
        if most == 0 or term == self.empty_text:
            return self.empty_text
        if term == self.nothing:
            return self.empty_text if least == 0 else self.nothing
        if (least, most) == (1, 1):
            return term
        if self.is_nullable(term):
            least = 0
        return self._make("repeat", term, least, most)

    def machine(self, moves: list[dict[int, Ranges]]) -> int:
        """Keep an automaton whose every character leads somewhere; return its number."""
        self._machines.append(moves)
        return len(self._machines) - 1

    def walk(self, machine: int, at: int, to: int) -> Term:
        """Return the texts that lead from one state of an automaton to another."""
        return self._make("walk", machine, at, to)

    def is_nullable(self, term: Term) -> bool:
        """Tell whether a language has the empty text."""
        if term not in self._nullable:
            kind, *parts = self._terms[term]
            if kind == "then":
                found = all(map(self.is_nullable, parts))
            elif kind == "either":
                found = any(map(self.is_nullable, parts[0]))
            elif kind == "both":
                found = all(map(self.is_nullable, parts[0]))
            elif kind == "not":
                found = not self.is_nullable(parts[0])
            elif kind == "repeat":
                found = parts[1] == 0 or self.is_nullable(parts[0])
            elif kind == "walk":
                found = parts[1] == parts[2]
            else:
                found = kind == "empty"
            self._nullable[term] = found
        return self._nullable[term]

    @property
    def num_derived(self) -> int:
        """Count the derivatives that were taken."""
        return len(self._derived)

    def derivative(self, term: Term, code: int) -> Term:
        """Return what may follow a first character."""
        key = (term, code)
        if key not in self._derived:
            if len(self._derived) >= _MAX_DERIVED:
                raise PatternRefused("a pattern too complex to combine")
            self._derived[key] = self._derive(term, code)
        return self._derived[key]

    def _derive(self, term: Term, code: int) -> Term:
        kind, *parts = self._terms[term]
        if kind == "chars":
            is_in = any(low <= code <= high for low, high in parts[0])
            return self.empty_text if is_in else self.nothing
        if kind == "then":
            first = self.then(self.derivative(parts[0], code), parts[1])
            if not self.is_nullable(parts[0]):
                return first
            return self.either({first, self.derivative(parts[1], code)})
        if kind == "either":
            return self.either({self.derivative(part, code) for part in parts[0]})
        if kind == "both":
            return self.both({self.derivative(part, code) for part in parts[0]})
        if kind == "not":
            return self.negated(self.derivative(parts[0], code))
        if kind == "repeat":
            item, least, most = parts
            rest = self.repeated(item, max(0, least - 1), None if most is None else most - 1)
            return self.then(self.derivative(item, code), rest)
        return self._walked(parts, code) if kind == "walk" else self.nothing

    def _walked(self, parts: list[Any], code: int) -> Term:
        machine, at, to = parts
        for through, ranges in self._machines[machine][at].items():
            if any(low <= code <= high for low, high in ranges):
                return self.walk(machine, through, to)
        return self.nothing

    def letters(self, term: Term) -> list[Ranges]:
        """Return classes of characters that the language does not tell apart."""
        return self.letters_of([term])

    def letters_of(self, terms: list[Term]) -> list[Ranges]:
        """Return classes of characters that none of some languages tells apart."""
        found: set[Ranges] = set()
        seen, pending = set[Term](), list(terms)
        while pending:
            one = pending.pop()
            if one in seen:
                continue
            seen.add(one)
            kind, *parts = self._terms[one]
            if kind == "chars":
                found.add(parts[0])
            elif kind in ("either", "both"):
                pending += parts[0]
            elif kind in ("then", "not"):
                pending += parts
            elif kind == "repeat":
                pending.append(parts[0])
            elif kind == "walk":
                found |= {ranges for row in self._machines[parts[0]] for ranges in row.values()}
        return _classes(found)


def _classes(all_ranges: set[Ranges]) -> list[Ranges]:
    cuts = {0, LAST + 1}
    for ranges in all_ranges:
        for low, high in ranges:
            cuts |= {low, high + 1}
    ordered = sorted(cuts)
    groups: dict[tuple[Ranges, ...], list[tuple[int, int]]] = {}
    keys = sorted(all_ranges)
    for low, end in itertools.pairwise(ordered):
        inside = tuple(
            ranges for ranges in keys if any(begin <= low <= last for begin, last in ranges)
        )
        groups.setdefault(inside, []).append((low, end - 1))
    return [tuple(group) for group in groups.values()]
