"""Evaluated keys and items of a value: those that `unevaluated…` says nothing about.

They depend on which of the schemas beside and below it a value satisfies. So each way in which it
may satisfy them is a choice of its own, with the keys and items that are evaluated there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.engine.grammar.schema.case import Fields, Items
from tokenbus.engine.grammar.schema.formula import lacks, object_with, with_fields, with_items
from tokenbus.engine.grammar.schema.node import Claim, Node
from tokenbus.engine.grammar.schema.refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.engine.grammar.schema.document import Document
    from tokenbus.engine.grammar.schema.formula import Choice, Part

_MAX_WAYS = 256
_DEEP = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas")
_EVERYTHING = Claim(Node(0, (), verdict=True))


@dataclass(frozen=True, slots=True)
class Seen:
    """What is evaluated: keys, patterns of keys, the first items; `all_…` if nothing is left."""

    keys: frozenset[str] = frozenset()
    patterns: frozenset[str] = frozenset()
    all_keys: bool = False
    num_items: int = 0
    all_items: bool = False

    def __or__(self, other: Seen) -> Seen:
        return Seen(
            self.keys | other.keys,
            self.patterns | other.patterns,
            self.all_keys or other.all_keys,
            max(self.num_items, other.num_items),
            self.all_items or other.all_items,
        )


Way = tuple[list["Part"], Seen]


class Evaluation:
    """Finds the ways in which a document's schemas evaluate a value."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def choice(self, node: Node, word: str) -> Choice:
        """Return what an `unevaluated…` keyword asserts, for each way.

        Raises: GrammarRejected if there are too many, or if they depend on the value of an item.
        """
        rest = Claim(node.words[word])
        ways = []
        for parts, seen in self._ways(node, word, ()):
            if word == "unevaluatedProperties":
                keys = dict.fromkeys(sorted(seen.keys), _EVERYTHING)
                patterns = dict.fromkeys(sorted(seen.patterns), _EVERYTHING)
                fields = Fields(keys, patterns, rest, node.path)
                own: list[Part] = [] if seen.all_keys else [with_fields(fields)]
            else:
                items = Items([_EVERYTHING] * seen.num_items, rest)
                own = [] if seen.all_items else [with_items(items)]
            ways.append([*parts, *own])
        return ways

    def _ways(self, node: Node, asked: str, within: tuple[Node, ...]) -> list[Way]:
        if node in within:
            raise refusal(asked, node.path, "not supported in a schema that refers to itself")
        if node.verdict is not None:
            return [([], Seen())]
        within = (*within, node)
        ways: list[Way] = [([], self._own(node, asked, is_outer=len(within) == 1))]
        for word in _DEEP:
            if word in node.words:
                for more in self._of_word(node, word, asked, within):
                    ways = [
                        ([*parts, *others], seen | other)
                        for parts, seen in ways
                        for others, other in more
                    ]
                    if len(ways) > _MAX_WAYS:
                        raise refusal(asked, within[0].path, "too many ways to satisfy the rest")
        return ways

    def _own(self, node: Node, asked: str, *, is_outer: bool) -> Seen:
        words = node.words
        if asked == "unevaluatedItems" and "contains" in words:
            raise refusal(asked, node.path, "not supported beside contains")
        is_all_keys = "additionalProperties" in words or (
            "unevaluatedProperties" in words and not is_outer
        )
        is_all_items = "items" in words or ("unevaluatedItems" in words and not is_outer)
        return Seen(
            frozenset(words.get("properties", ())),
            frozenset(words.get("patternProperties", ())),
            is_all_keys,
            len(words.get("prefixItems", ())),
            is_all_items,
        )

    def _of_word(
        self, node: Node, word: str, asked: str, within: tuple[Node, ...]
    ) -> Iterator[list[Way]]:
        """Yield the ways of each schema that a keyword applies to the same value."""
        value = node.words[word]
        if word == "$ref":
            yield self._ways(self._document.target(node), asked, within)
        elif word == "allOf":
            for inner in value:
                yield self._ways(inner, asked, within)
        elif word in ("anyOf", "oneOf"):
            yield self._of_choice(value, asked, within, is_one=word == "oneOf")
        elif word == "if":
            then, other = node.get("then"), node.get("else")
            passed = self._passed(value, asked, within)
            if then is not None:
                passed = _product(passed, self._ways(then, asked, within))
            failed: list[Way] = [] if other is None else self._ways(other, asked, within)
            yield [*passed, *_product([([Claim(value, False)], Seen())], failed or [([], Seen())])]
        elif word == "dependentSchemas":
            for key, inner in value.items():
                ways = self._ways(inner, asked, within)
                yield [
                    ([lacks(key)], Seen()),
                    *(([*object_with(key), *parts], seen) for parts, seen in ways),
                ]

    def _of_choice(
        self, inners: list[Node], asked: str, within: tuple[Node, ...], *, is_one: bool
    ) -> list[Way]:
        ways: list[Way] = []
        num = len(inners)
        if not is_one and num > 6:
            raise refusal(asked, within[0].path, "not supported beside more than 6 alternatives")
        subsets = (
            [(index,) for index in range(num)]
            if is_one
            else [
                subset
                for size in range(1, num + 1)
                for subset in itertools.combinations(range(num), size)
            ]
        )
        for subset in subsets:
            found: list[Way] = [([], Seen())]
            for index, inner in enumerate(inners):
                if index in subset:
                    found = _product(found, self._passed(inner, asked, within))
                else:
                    found = [([*parts, Claim(inner, False)], seen) for parts, seen in found]
            ways += found
            if len(ways) > _MAX_WAYS:
                raise refusal(asked, within[0].path, "too many ways to satisfy the rest")
        return ways

    def _passed(self, node: Node, asked: str, within: tuple[Node, ...]) -> list[Way]:
        return [([Claim(node), *parts], seen) for parts, seen in self._ways(node, asked, within)]


def _product(ones: list[Way], others: list[Way]) -> list[Way]:
    return [([*a, *b], seen | other) for a, seen in ones for b, other in others]
