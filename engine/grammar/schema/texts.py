"""Texts: patterns and formats of a case, combined into what one schema of a string says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from tokenbus.engine.grammar.patterns.automaton import Automaton
from tokenbus.engine.grammar.patterns.formats import format_pattern, is_known
from tokenbus.engine.grammar.patterns.language import DERIVED_A_STEP, Languages
from tokenbus.engine.grammar.patterns.pattern_languages import PatternLanguages
from tokenbus.engine.grammar.patterns.pattern_tree import (
    Chain,
    Edge,
    Either,
    PatternRefused,
    Repeat,
    Tree,
    read_pattern,
)
from tokenbus.engine.grammar.patterns.pattern_writer import looks_around, write_pattern
from tokenbus.engine.grammar.schema.refusal import refusal

if TYPE_CHECKING:
    from tokenbus.engine.grammar.patterns.language import Term
    from tokenbus.engine.grammar.schema.case import SchemaCase, Text
    from tokenbus.engine.grammar.schema.judge import Judge
    from tokenbus.engine.grammar.schema.node import Claims, Node
    from tokenbus.engine.grammar.schema.refusal import Path, StepBudget


# Characters of patterns that are combined as languages; those of times have 35,000.
_MAX_COMBINED = 4_000


class Combiner(Protocol):
    """What combines claims about a value; the parts of a value lead back to it."""

    budget: StepBudget
    texts: Texts
    judge: Judge
    is_watched: bool

    def schema(self, claims: Claims) -> Any:
        """Return a schema for claims."""

    def cases(self, claims: Claims) -> list[SchemaCase]:
        """Return the ways in which claims can be true."""

    def is_empty(self, claims: Claims) -> bool:
        """Tell whether nothing satisfies claims, as far as can be seen."""

    def values(self, claims: Claims, most: int = ...) -> list[Any] | None:
        """Return all values that satisfy claims, None if they are many."""


class Texts:
    """Works on the texts of one document; what it found out is kept."""

    def __init__(self, budget: StepBudget) -> None:
        self.languages = Languages()
        self._budget = budget
        self._of_pattern = PatternLanguages(self.languages)
        self._automata: dict[Term, Automaton] = {}
        self._terms: dict[str, Term] = {}
        self._written: dict[str, str] = {}

    def matches(self, word: str, name: str, text: str, node: Node) -> bool:
        """Tell whether a text has a pattern or a format. Raises: GrammarRejected."""
        pattern = self._pattern(word, name, node.path, is_alone="pattern" not in node.words)
        if pattern is None:
            return True
        if word == "format":
            return re.fullmatch(pattern.replace("$", ""), text, re.ASCII) is not None
        try:
            return self.automaton(self.term(pattern)).accepts(text)
        except PatternRefused as error:
            raise refusal(word, node.path, f"{error} is not supported") from error

    def term(self, pattern: str) -> Term:
        """Return the language of a pattern. Raises: PatternRefused."""
        if len(pattern) > _MAX_COMBINED:
            raise PatternRefused("a pattern too long to combine")
        if pattern not in self._terms:
            self._terms[pattern] = self._of_pattern.of(read_pattern(pattern))
        return self._terms[pattern]

    def automaton(self, term: Term) -> Automaton:
        """Return the automaton of a language. Raises: PatternRefused, GrammarRejected."""
        if term not in self._automata:
            before = self.languages.num_derived
            self._automata[term] = Automaton(self.languages, term)
            self._budget.spend((), (self.languages.num_derived - before) // DERIVED_A_STEP)
        return self._automata[term]

    def written(self, pattern: str) -> str:
        """Write a pattern in the library's syntax. Raises: PatternRefused."""
        if pattern not in self._written:
            tree = read_pattern(pattern)
            is_plain = not looks_around(tree) and _edges_are_outside(tree)
            self._written[pattern] = (
                write_pattern(tree) if is_plain else self.automaton(self.term(pattern)).pattern()
            )
        return self._written[pattern]

    def schemas(self, case: SchemaCase) -> list[dict[str, Any]]:
        """Return keywords of the strings of a case; none if nothing is left.

        Raises: GrammarRejected.
        """
        patterns = [
            (text, pattern)
            for text in dict.fromkeys(case.texts)
            if (pattern := self._pattern(text.word, text.name, text.path, is_alone=text.is_alone))
            is not None
        ]
        excluded = [value for value in case.excluded if isinstance(value, str)]
        low, high = case.length
        lengths: dict[str, Any] = {"minLength": low} if low else {}
        if high is not None:
            lengths["maxLength"] = high
        unmet = any(
            not text.holds
            and self._pattern(text.word, text.name, text.path, is_alone=text.is_alone) is None
            for text in case.texts
        )
        if unmet:
            return []
        if all(text.holds for text, _ in patterns) and not excluded:
            patterns = self._without_implied(patterns)
            found = [self._as_written(text, pattern) for text, pattern in patterns]
            found = list(dict.fromkeys(found))
            if len(found) <= 1:
                return [{**lengths, **({"pattern": found[0]} if found else {})}]
            return [{**lengths, "allOf": [{"pattern": pattern} for pattern in found]}]
        text = patterns[0][0] if patterns else None
        try:
            automaton = self.automaton(self._combined(patterns, excluded))
            if automaton.is_empty:
                return []
            return [{**lengths, "pattern": automaton.pattern()}]
        except PatternRefused as error:
            word, path = (text.word, text.path) if text else ("enum", _path_of(case))
            raise refusal(word, path, f"{error} is not supported") from error

    def is_empty(self, case: SchemaCase) -> bool:
        """Tell whether no text is left, as far as can be seen."""
        excluded = [value for value in case.excluded if isinstance(value, str)]
        if len(case.texts) < 2 and not excluded:
            return False
        try:
            patterns = [
                (text, pattern)
                for text in dict.fromkeys(case.texts)
                if (
                    pattern := self._pattern(
                        text.word, text.name, text.path, is_alone=text.is_alone
                    )
                )
                is not None
            ]
            return self.automaton(self._combined(patterns, excluded)).is_empty
        except (PatternRefused, ValueError):
            return False

    def language(self, case: SchemaCase) -> Term:
        """Return the language of the strings of a case. Raises: GrammarRejected, PatternRefused."""
        patterns = [
            (text, pattern)
            for text in dict.fromkeys(case.texts)
            if (pattern := self._pattern(text.word, text.name, text.path, is_alone=text.is_alone))
            is not None
        ]
        low, high = case.length
        every = self.languages
        length = every.repeated(every.chars(((0, 0x10FFFF),)), low, high)
        excluded = [value for value in case.excluded if isinstance(value, str)]
        return every.both({self._combined(patterns, excluded), length})

    def _combined(self, patterns: list[tuple[Text, str]], excluded: list[str]) -> Term:
        every = self.languages
        terms = {every.negated(every.text(value)) for value in excluded}
        for text, pattern in patterns:
            term = self.term(pattern)
            terms.add(term if text.holds else every.negated(term))
        return every.both(terms)

    def _without_implied(self, patterns: list[tuple[Text, str]]) -> list[tuple[Text, str]]:
        """Leave out formats that a pattern beside them implies, as far as can be seen."""
        kept = list(patterns)
        for one in patterns:
            if one[0].word != "format":
                continue
            for other in kept:
                if other is not one and self._implies(other[1], one[1]):
                    kept.remove(one)
                    break
        return kept

    def _implies(self, pattern: str, other: str) -> bool:
        try:
            every = self.languages
            outside = every.both({self.term(pattern), every.negated(self.term(other))})
            return self.automaton(outside).is_empty
        except PatternRefused:
            return False

    def _as_written(self, text: Text, pattern: str) -> str:
        try:
            return self.written(pattern)
        except PatternRefused as error:
            raise refusal(text.word, text.path, f"{error} is not supported") from error

    def _pattern(self, word: str, name: str, path: Path, *, is_alone: bool) -> str | None:
        """Return the pattern of a pattern or a format, None if it says nothing."""
        if word == "pattern":
            return name
        if not is_alone and not is_known(name):
            return None
        try:
            return format_pattern(name)
        except PatternRefused as error:
            raise refusal("format", path, str(error)) from error


def _path_of(case: SchemaCase) -> Path:
    return min((claim.node.path for claim in case.claims), default=())


def _edges_are_outside(tree: Tree) -> bool:
    """Tell whether edges of the text stand only where an alternative begins or ends."""
    options = tree.items if isinstance(tree, Either) else (tree,)
    for option in options:
        items = list(option.items) if isinstance(option, Chain) else [option]
        if items and items[0] == Edge(True):
            items.pop(0)
        if items and items[-1] == Edge(False):
            items.pop()
        if any(map(_has_edge, items)):
            return False
    return True


def _has_edge(tree: Tree) -> bool:
    if isinstance(tree, Chain | Either):
        return any(map(_has_edge, tree.items))
    return isinstance(tree, Edge) or (isinstance(tree, Repeat) and _has_edge(tree.item))
