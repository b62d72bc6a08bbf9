"""The languages of patterns: every text in which a pattern is found.

It is one noun: each part of a pattern, with what may follow it and what precedes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.grammar.patterns.contexts import Contexts, check_inside
from tokenbus.engine.grammar.patterns.pattern_tree import (
    LAST,
    WORD,
    Chain,
    Chars,
    Edge,
    Either,
    LookAhead,
    LookBehind,
    PatternRefused,
    Ranges,
    Repeat,
    Tree,
    WordEdge,
    merged,
)

if TYPE_CHECKING:
    from tokenbus.engine.grammar.patterns.language import Languages, Term

# Times that what depends on its surroundings may be repeated.
_MAX_TIMES = 4


class PatternLanguages:
    """Makes languages of patterns."""

    def __init__(self, languages: Languages) -> None:
        self._all = languages
        self._some = languages.then(languages.chars(((0, LAST),)), languages.everything)

    def of(self, tree: Tree) -> Term:
        """Return the texts in which a tree is found. Raises: PatternRefused."""
        contexts = Contexts(self._all, tree, self._ending)
        part = _Part(self._all, contexts)
        anything = [self._all.everything] * len(contexts)
        found = {part.before(tree, anything, 0)}
        for context in range(1, len(contexts)):
            found.add(self._all.then(part.way(0, context), part.before(tree, anything, context)))
        return self._all.either(found)

    def _ending(self, tree: Tree) -> Term:
        """Return the texts that end in a tree, which looks nowhere around."""
        check_inside(tree)
        every = self._all
        part = _Part(every, Contexts(every, tree, self._ending))
        nothing_more = [every.empty_text] * 2
        later = part.before(tree, nothing_more, 1)
        return every.either({part.before(tree, nothing_more, 0), every.then(self._some, later)})


class _Part:
    """Parts of one pattern, each with what follows it in each context."""

    def __init__(self, languages: Languages, contexts: Contexts) -> None:
        self._all = languages
        self._contexts = contexts
        self._machine = languages.machine(contexts.moves) if len(contexts) > 2 else None
        self._some = languages.then(languages.chars(((0, LAST),)), languages.everything)
        # With each tree, which keeps its id from being another one's.
        self._known: dict[tuple[int, tuple[Term, ...], int], tuple[Tree, Term]] = {}

    def before(self, tree: Tree, after: list[Term], at: int) -> Term:
        """Return a tree and what follows it.

        after: what follows, by the context behind the tree. at: the context before it.
        """
        key = id(tree), tuple(after), at
        if key not in self._known:
            self._known[key] = tree, self._before(tree, after, at)
        return self._known[key][1]

    def _before(self, tree: Tree, after: list[Term], at: int) -> Term:
        every = self._all
        if isinstance(tree, Chars):
            return self._chars(tree, after, at)
        if isinstance(tree, Either):
            return every.either({self.before(item, after, at) for item in tree.items})
        if isinstance(tree, Chain):
            for item in reversed(tree.items[1:]):
                after = [self.before(item, after, one) for one in range(len(self._contexts))]
            return self.before(tree.items[0], after, at) if tree.items else after[at]
        if isinstance(tree, Repeat):
            return self._repeat(tree, after, at)
        return self._condition(tree, after, at)

    def _chars(self, tree: Chars, after: list[Term], at: int) -> Term:
        if tree.properties:
            raise PatternRefused("a Unicode property in a pattern that has to be combined")
        by_term: dict[Term, list[tuple[int, int]]] = {}
        for to, ranges in self._contexts.moves[at].items():
            by_term.setdefault(after[to], []).extend(_common(tree.ranges, ranges))
        every = self._all
        return every.either(
            {every.then(every.chars(merged(ranges)), term) for term, ranges in by_term.items()}
        )

    def _condition(self, tree: Tree, after: list[Term], at: int) -> Term:
        """Return what follows a place, where it is as it should be."""
        every, rest = self._all, after[at]
        if isinstance(tree, Edge):
            if tree.is_begin:
                return rest if at == 0 else every.nothing
            return every.empty_text if every.is_nullable(rest) else every.nothing
        if isinstance(tree, LookAhead):
            seen = self.before(tree.item, [every.everything] * len(self._contexts), at)
            return every.both({every.negated(seen) if tree.is_negated else seen, rest})
        if isinstance(tree, LookBehind):
            found = self._contexts.has_behind(at, LookBehind(tree.item, False))
            return rest if found is not tree.is_negated else every.nothing
        assert isinstance(tree, WordEdge)
        follows = every.then(every.chars(WORD), every.everything)
        if self._contexts.has_behind(at, None) is not tree.is_negated:
            follows = every.negated(follows)
        return every.both({follows, rest})

    def way(self, at: int, to: int) -> Term:
        """Return the texts of a character or more that lead from one context to another."""
        every, moves = self._all, self._contexts.moves
        if self._machine is None:
            return self._some if to in moves[at] else every.nothing
        return every.both({every.walk(self._machine, at, to), self._some})

    def _repeat(self, tree: Repeat, after: list[Term], at: int) -> Term:
        every, plain = self._all, self._plain(tree.item)
        if plain is None:
            if tree.most is None or tree.most > _MAX_TIMES:
                raise PatternRefused("a repetition of what looks around or at an edge")
            options = [
                self.before(Chain((tree.item,) * num), after, at)
                for num in range(tree.least, tree.most + 1)
            ]
            return every.either(set(options))
        repeated = every.repeated(plain, tree.least, tree.most)
        if len(set(after)) == 1 or (at > 0 and len(self._contexts) == 2):
            return every.then(repeated, after[at])
        found = {
            every.then(every.both({repeated, self.way(at, to)}), after[to])
            for to in range(1, len(self._contexts))
        }
        return every.either(found | ({after[at]} if every.is_nullable(repeated) else set()))

    def _plain(self, tree: Tree) -> Term | None:
        """Return the language of a tree by itself, None if it depends on what is around."""
        every = self._all
        if isinstance(tree, Chars):
            if tree.properties:
                raise PatternRefused("a Unicode property in a pattern that has to be combined")
            return every.chars(tree.ranges)
        if isinstance(tree, Repeat):
            item = self._plain(tree.item)
            return None if item is None else every.repeated(item, tree.least, tree.most)
        if isinstance(tree, Chain | Either):
            parts = [self._plain(item) for item in tree.items]
            known = [part for part in parts if part is not None]
            if len(known) < len(parts):
                return None
            if isinstance(tree, Either):
                return every.either(set(known))
            whole = every.empty_text
            for part in reversed(known):
                whole = every.then(part, whole)
            return whole
        return None


def _common(one: Ranges, other: Ranges) -> list[tuple[int, int]]:
    """Return the characters that are in both."""
    return [
        (max(low, begin), min(high, end))
        for low, high in one
        for begin, end in other
        if max(low, begin) <= min(high, end)
    ]
