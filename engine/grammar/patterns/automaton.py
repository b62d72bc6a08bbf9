"""The automaton of a regular language: is it empty, what does it hold, how is it written?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.grammar.patterns.pattern_tree import LAST, PatternRefused, Ranges, merged
from tokenbus.engine.grammar.patterns.pattern_writer import write_ranges

if TYPE_CHECKING:
    from tokenbus.engine.grammar.patterns.language import Languages, Term

# States of an automaton, and characters of a pattern written from one. Decimals of 20 digits have
# 500 states, and a pattern of 12,000 characters.
_MAX_STATES, _MAX_PATTERN = 1_500, 30_000
# Groups inside one another; the library takes 250 levels, of which one group is two.
_MAX_NESTING = 100


class Automaton:
    """The least deterministic automaton of a language; states that lead nowhere are left out.

    `moves[state][next]` are the characters that lead from one state to the next; state 0 is the
    first, unless there is none.
    """

    def __init__(self, languages: Languages, term: Term) -> None:
        """Build it. Raises: PatternRefused if it has too many states."""
        letters = languages.letters(term)
        ids, pending = {term: 0}, [term]
        steps: list[list[int]] = []
        for one in pending:
            row = []
            for letter in letters:
                found = languages.derivative(one, letter[0][0])
                if found not in ids:
                    if len(ids) >= _MAX_STATES:
                        raise PatternRefused("a pattern too complex to combine")
                    ids[found] = len(ids)
                    pending.append(found)
                row.append(ids[found])
            steps.append(row)
        ends = [languages.is_nullable(one) for one in pending]
        self._keep_least(steps, ends, letters)

    def _keep_least(self, steps: list[list[int]], ends: list[bool], letters: list[Ranges]) -> None:
        groups = [int(end) for end in ends]
        num_groups = 0
        while num_groups < len(set(groups)):
            num_groups = len(set(groups))
            names: dict[tuple[int, ...], int] = {}
            groups = [
                names.setdefault((groups[one], *(groups[to] for to in row)), len(names))
                for one, row in enumerate(steps)
            ]
        first_of = {group: one for one, group in reversed(list(enumerate(groups)))}
        live = {groups[one] for one, end in enumerate(ends) if end}
        grows = True
        while grows:
            more = {
                g for g, one in first_of.items() if any(groups[to] in live for to in steps[one])
            }
            grows = not more <= live
            live |= more
        order = [group for group in first_of if group in live]
        order.sort(key=lambda group: (group != groups[0], first_of[group]))
        number = {group: index for index, group in enumerate(order)}
        self.is_empty = groups[0] not in live
        self.ends = [ends[first_of[group]] for group in order]
        self.moves: list[dict[int, Ranges]] = []
        for group in order:
            lists: dict[int, list[tuple[int, int]]] = {}
            for letter, to in zip(letters, steps[first_of[group]], strict=True):
                if groups[to] in live:
                    lists.setdefault(number[groups[to]], []).extend(letter)
            self.moves.append({to: merged(ranges) for to, ranges in lists.items()})

    def accepts(self, text: str) -> bool:
        """Tell whether a text is in the language."""
        state = None if self.is_empty else 0
        for character in text:
            if state is None:
                return False
            code = ord(character)
            state = next(
                (
                    to
                    for to, ranges in self.moves[state].items()
                    if any(low <= code <= high for low, high in ranges)
                ),
                None,
            )
        return state is not None and self.ends[state]

    def texts(self, most: int) -> list[str] | None:
        """Return all texts of the language, None if there are more than `most`."""
        if self.is_empty:
            return []
        found, pending = list[str](), [(0, "")]
        while pending:
            state, text = pending.pop()
            if self.ends[state]:
                found.append(text)
            for to, ranges in self.moves[state].items():
                num = sum(high - low + 1 for low, high in ranges)
                if num + len(found) > most or len(text) > len(self.moves):
                    return None
                codes = (code for low, high in ranges for code in range(low, high + 1))
                pending += [(to, text + chr(code)) for code in codes]
            if len(pending) + len(found) > most:
                return None
        return sorted(found)

    def pattern(self) -> str:
        """Write the language as an anchored pattern.

        Raises: PatternRefused if it is empty or too long.
        """
        if self.is_empty:
            raise PatternRefused("a pattern that matches nothing")
        first, last = len(self.moves), len(self.moves) + 1
        arrows: dict[int, dict[int, str]] = {
            state: {to: _written(ranges) for to, ranges in row.items()}
            for state, row in enumerate(self.moves)
        }
        arrows[first], arrows[last] = {0: ""}, {}
        for state, is_end in enumerate(self.ends):
            if is_end:
                arrows[state][last] = ""
        into: dict[int, set[int]] = {state: set() for state in arrows}
        for state, row in arrows.items():
            for to in row:
                into[to].add(state)
        pending = set(range(len(self.moves)))
        while pending:
            state = min(pending, key=lambda one: (len(into[one]) * len(arrows[one]), one))
            pending.discard(state)
            _eliminate(state, arrows, into)
        if _depth(arrows[first][last]) > _MAX_NESTING:
            raise PatternRefused("a pattern too complex to combine")
        return f"^(?:{arrows[first][last]})$"


def _eliminate(state: int, arrows: dict[int, dict[int, str]], into: dict[int, set[int]]) -> None:
    """Lead all arrows around a state."""
    row = arrows.pop(state)
    loop = row.pop(state, None)
    over = "" if loop is None else f"(?:{loop})*"
    for source in into.pop(state) - {state}:
        before = arrows[source].pop(state)
        for to, after in row.items():
            path = f"{before}{over}{after}"
            known = arrows[source].get(to)
            joined = path if known is None else _either(known, path)
            if len(joined) > _MAX_PATTERN:
                raise PatternRefused("a pattern too complex to combine")
            arrows[source][to] = joined
            into[to].add(source)
    for to in row:
        into[to].discard(state)


def _either(one: str, other: str) -> str:
    if not one or not other:
        return f"(?:{one or other})?" if one or other else ""
    return f"(?:{one}|{other})"


def _depth(pattern: str) -> int:
    """Return how deep groups nest, at most."""
    depth = deepest = 0
    for index, sign in enumerate(pattern):
        if sign in "()" and pattern[index - 1 : index] != "\\":
            depth += 1 if sign == "(" else -1
            deepest = max(deepest, depth)
    return deepest


def _written(ranges: Ranges) -> str:
    if ranges == ((0, LAST),):
        return "(?s:.)"
    return write_ranges(ranges)
