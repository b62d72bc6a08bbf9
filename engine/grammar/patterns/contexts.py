"""Contexts: what a pattern has to know of the text before a place, to look behind from there.

A context is a state of the automata that watch for what is looked for; the first one is the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.grammar.patterns.automaton import Automaton
from tokenbus.engine.grammar.patterns.pattern_tree import (
    WORD,
    Chain,
    Edge,
    Either,
    LookAhead,
    LookBehind,
    PatternRefused,
    Ranges,
    Repeat,
    Tree,
    WordEdge,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenbus.engine.grammar.patterns.language import Languages, Term

# Contexts of one pattern; one character behind is two, a word of six letters seven.
_MAX_CONTEXTS = 24
# Where each automaton stands; None is where nothing more can come of it.
_State = tuple[int | None, ...]


class Contexts:
    """The contexts of one pattern.

    `moves[context][next]` are the characters that lead from one to the next. 0 is the start of the
    text, which nothing leads back to.
    """

    def __init__(self, languages: Languages, tree: Tree, ending: Callable[[Tree], Term]) -> None:
        """Find them.

        ending: the language of texts that end in a tree. Raises: PatternRefused if there are many.
        """
        behind = list(dict.fromkeys(_looking_behind(tree)))
        word = languages.then(languages.everything, languages.chars(WORD))
        terms = [word if isinstance(one, WordEdge) else ending(one.item) for one in behind]
        self._number = {
            one if isinstance(one, LookBehind) else None: index for index, one in enumerate(behind)
        }
        self._automata = [Automaton(languages, term) for term in terms]
        first: _State = tuple(None if one.is_empty else 0 for one in self._automata)
        ids: dict[tuple[bool, _State], int] = {(True, first): 0}
        pending = [(True, first)]
        self.moves: list[dict[int, Ranges]] = []
        letters = languages.letters_of(terms)
        for _, state in pending:
            lists: dict[int, list[tuple[int, int]]] = {}
            for letter in letters:
                key = (False, self._next(state, letter[0][0]))
                if key not in ids:
                    if len(ids) >= _MAX_CONTEXTS:
                        raise PatternRefused("a pattern that looks behind at too much")
                    ids[key] = len(ids)
                    pending.append(key)
                lists.setdefault(ids[key], []).extend(letter)
            self.moves.append({to: tuple(sorted(ranges)) for to, ranges in lists.items()})
        self._states = [state for _, state in pending]

    def __len__(self) -> int:
        """Count the contexts."""
        return len(self.moves)

    def has_behind(self, context: int, asked: LookBehind | None) -> bool:
        """Tell whether what is looked for precedes; None is a character of a word."""
        index = self._number[asked]
        state = self._states[context][index]
        return state is not None and self._automata[index].ends[state]

    def _next(self, state: _State, code: int) -> _State:
        return tuple(
            None if at is None else _step(automaton, at, code)
            for at, automaton in zip(state, self._automata, strict=True)
        )


def check_inside(tree: Tree) -> None:
    """Raise for what is looked for behind and does not end where the place is.

    Raises: PatternRefused.
    """
    if isinstance(tree, Chain | Either):
        for item in tree.items:
            check_inside(item)
    elif isinstance(tree, Repeat):
        check_inside(tree.item)
    elif isinstance(tree, LookAhead | LookBehind | WordEdge) or tree == Edge(False):
        raise PatternRefused("look-around inside of a look-behind")


def _looking_behind(tree: Tree) -> Iterator[LookBehind | WordEdge]:
    """Yield all that looks behind; every edge of words is one."""
    if isinstance(tree, Chain | Either):
        for item in tree.items:
            yield from _looking_behind(item)
    elif isinstance(tree, Repeat | LookAhead):
        yield from _looking_behind(tree.item)
    elif isinstance(tree, LookBehind):
        yield LookBehind(tree.item, False)
    elif isinstance(tree, WordEdge):
        yield WordEdge(False)


def _step(automaton: Automaton, state: int, code: int) -> int | None:
    for to, ranges in automaton.moves[state].items():
        if any(low <= code <= high for low, high in ranges):
            return to
    return None
