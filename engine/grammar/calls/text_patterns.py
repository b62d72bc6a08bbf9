"""Patterns of bare strings, widened to match a whole string, as a Lark grammar needs them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.grammar.patterns.automaton import Automaton
from tokenbus.engine.grammar.patterns.language import DERIVED_A_STEP, Languages
from tokenbus.engine.grammar.patterns.pattern_languages import PatternLanguages
from tokenbus.engine.grammar.patterns.pattern_tree import LAST, PatternRefused, read_pattern

if TYPE_CHECKING:
    from tokenbus.engine.grammar.schema.refusal import StepBudget

# A pattern with anchors at its ends alone.
_ANCHORED = re.compile(r"(?P<first>\^?)(?P<body>(?:[^\^$\\]|\\.|\[\^)*)(?P<last>\$?)", re.DOTALL)
# What may stand outside of groups: escapes, classes, and signs by themselves.
_PIECE = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|.", re.DOTALL)


def whole_pattern(pattern: str, budget: StepBudget, least: int = 0, most: int | None = None) -> str:
    """Return what a string is, between slashes, in which a pattern of a schema is found.

    budget: what it takes to combine patterns is counted there. least, most: of its characters. The
    library could join a pattern and a length by itself, but fails where a text has come to its end
    and neither of the two knows it.
    Raises: RequestRejected for the field `tools` if nobody can tell.
    """
    found = _ANCHORED.fullmatch(pattern)
    is_bounded = least > 0 or most is not None
    if found is None or is_bounded or _has_ways(found["body"]):
        try:
            languages = Languages()
            tree = read_pattern(pattern.replace("(?s:.)", r"[\s\S]"))
            term = PatternLanguages(languages).of(tree)
            if is_bounded:
                length = languages.repeated(languages.chars(((0, LAST),)), least, most)
                term = languages.both({term, length})
            whole = Automaton(languages, term).pattern()
            budget.spend((), languages.num_derived // DERIVED_A_STEP)
        except (PatternRefused, GrammarRejected) as error:
            raise RequestRejected("tools", f"pattern {pattern[:80]!r}: {error}") from error
        return _in_slashes(whole.removeprefix("^").removesuffix("$"))
    before, behind = ("" if found[anchor] else "(?s:.*)" for anchor in ("first", "last"))
    return f"{before}({_in_slashes(found['body'])}){behind}"


def _has_ways(body: str) -> bool:
    """Tell whether a pattern has alternatives outside of all groups: anchors are of one of them."""
    depth = 0
    for piece in _PIECE.findall(body):
        depth += (piece == "(") - (piece == ")")
        if piece == "|" and not depth:
            return True
    return False


def _in_slashes(pattern: str) -> str:
    return re.sub(r"(?<!\\)/", r"\\/", pattern)
