"""Claims expanded into cases: every choice made, contradictions left out.

A schema that refers to itself without a value between never ends, and is refused before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.engine.grammar.schema.case import SchemaCase, identity
from tokenbus.engine.grammar.schema.evaluated import Evaluation
from tokenbus.engine.grammar.schema.formula import negative, positive, structure
from tokenbus.engine.grammar.schema.node import Claim, Claims, all_of, meant
from tokenbus.engine.grammar.schema.refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokenbus.engine.grammar.schema.document import Document
    from tokenbus.engine.grammar.schema.formula import Choice, Part
    from tokenbus.engine.grammar.schema.node import Node
    from tokenbus.engine.grammar.schema.refusal import StepBudget

# Cases of one value. Alternatives that a schema lists are all of them cases: a union of 300 is the
# largest that was seen.
_MAX_CASES = 4096
# What a look at two alternatives costs: 0.3 ms, where another step is 5 to 10 us.
_PAIR_STEPS = 40
_STRUCTURE = frozenset(
    {"properties", "patternProperties", "additionalProperties", "prefixItems", "items"}
)
_ONE, _LISTS = ("not", "if", "then", "else"), ("allOf", "anyOf", "oneOf")
_UNEVALUATED = ("unevaluatedItems", "unevaluatedProperties")


class Expansion:
    """Expands the claims of one document."""

    def __init__(
        self, document: Document, is_empty: Callable[[Claims], bool], budget: StepBudget
    ) -> None:
        """Keep what tells whether nothing satisfies claims, as far as can be seen."""
        self._document = document
        self._is_empty = is_empty
        self._budget = budget
        self._evaluation = Evaluation(document)
        self._known: dict[Claims, list[SchemaCase]] = {}
        self._apart: dict[Node, bool] = {}

    def cases(self, claims: Claims) -> list[SchemaCase]:
        """Return the cases of claims; none if nothing satisfies them.

        Raises: GrammarRejected if there are too many.
        """
        if claims not in self._known:
            self._known[claims] = self._expand(claims)
        return self._known[claims]

    def _expand(self, claims: Claims) -> list[SchemaCase]:
        found: list[SchemaCase] = []
        pending: list[tuple[SchemaCase, list[Part], list[Choice]]] = [
            (SchemaCase(), list(claims), [])
        ]
        while pending:
            case, parts, choices = pending.pop()
            case, choices = self._apply(case, parts, choices)
            if case.is_empty:
                continue
            choices = [
                choice
                for choice in choices
                if not any(
                    len(way) == 1 and isinstance(way[0], Claim) and way[0] in case.claims
                    for way in choice
                )
            ]
            if not choices:
                found.append(case)
                continue
            self._budget.spend(claims[0].node.path, len(choices[0]))
            pending += [(case, way, choices[1:]) for way in reversed(choices[0])]
            if len(found) + len(pending) > _MAX_CASES:
                raise refusal(
                    _word_of(claims), claims[0].node.path, f"more than {_MAX_CASES} alternatives"
                )
        return found

    def _apply(
        self, case: SchemaCase, parts: list[Part], choices: list[Choice]
    ) -> tuple[SchemaCase, list[Choice]]:
        """Apply all that leaves no choice; return what is left to choose."""
        choices, pending = list(choices), list(reversed(parts))
        while pending and not case.is_empty:
            part = pending.pop()
            if isinstance(part, list):
                choices.append(part)
            elif not isinstance(part, Claim):
                case = part(case)
            elif part.verdict is False or part.opposite in case.claims:
                return case.of_kinds(frozenset()), []
            elif part.verdict is None and part not in case.claims:
                self._budget.spend(part.node.path)
                case = case.with_(claims=case.claims | {part})
                pending += reversed(list(self._parts(part)))
        return case, choices

    def _parts(self, claim: Claim) -> Iterator[Part]:
        node = claim.node
        if not claim.holds:
            yield [way for word in node.words for way in self._negative(node, word)]
            return
        has_structure = False
        for word in node.words:
            if word == "$ref":
                yield Claim(self._document.target(node))
            elif word == "oneOf":
                yield self._one_of(node)
            elif word in _UNEVALUATED:
                yield self._evaluation.choice(node, word)
            elif word in _STRUCTURE:
                if not has_structure:
                    yield from structure(node)
                has_structure = True
            else:
                yield from positive(node, word)

    def _negative(self, node: Node, word: str) -> Iterator[list[Part]]:
        if word == "$ref":
            yield [Claim(self._document.target(node), False)]
        elif word == "oneOf":
            inners = node.words[word]
            yield [Claim(inner, False) for inner in inners]
            if not self._are_apart(node):
                for index, one in enumerate(inners):
                    for other in inners[:index]:
                        yield [Claim(one), Claim(other)]
        else:
            yield from negative(node, word)

    def _one_of(self, node: Node) -> Choice:
        inners = node.words["oneOf"]
        if self._are_apart(node):
            return [[Claim(inner)] for inner in inners]
        return [
            [Claim(one), *(Claim(other, False) for other in inners if other is not one)]
            for one in inners
        ]

    def _are_apart(self, node: Node) -> bool:
        """Tell whether no value satisfies two alternatives of `oneOf`, as far as can be seen."""
        if node not in self._apart:
            inners = node.words["oneOf"]
            self._apart[node] = False
            self._apart[node] = _have_tag(inners) or all(
                self._is_pair_empty(one, other)
                for index, one in enumerate(inners)
                for other in inners[:index]
            )
        return self._apart[node]

    def _is_pair_empty(self, one: Node, other: Node) -> bool:
        self._budget.spend(one.path, _PAIR_STEPS)
        return self._is_empty(all_of([Claim(one), Claim(other)]))


def _have_tag(nodes: Sequence[Node]) -> bool:
    """Tell whether all are of objects with a key that they require, each with values of its own."""
    tags = [_tags(meant(node)) for node in nodes]
    shared = set[str].intersection(*map(set, tags)) if tags else set()
    for key in shared:
        values = [{*map(identity, each[key])} for each in tags]
        if len(set[Any]().union(*values)) == sum(map(len, values)):
            return True
    return False


def _tags(node: Node) -> dict[str, list[Any]]:
    """Return the required keys of an object whose values are listed, with these."""
    words = node.words
    if words.get("type") not in ("object", ["object"]):
        return {}
    inside = {key: meant(inner) for key, inner in words.get("properties", {}).items()}
    return {
        key: listed
        for key in words.get("required", ())
        if key in inside and (listed := _listed(inside[key])) is not None
    }


def _listed(node: Node) -> list[Any] | None:
    """Return the values that a schema lists, None if it lists none."""
    listed: list[Any] | None = node.words.get("enum", node.words.get("const"))
    return listed


def _word_of(claims: Claims) -> str:
    words = list(claims[0].node.words)
    return next((word for word in words if word in ("oneOf", "anyOf", "not", "if")), words[0])


def check_cycles(document: Document) -> None:
    """Raise for a schema that refers back to itself without passing a value.

    Raises: GrammarRejected.
    """
    finished: set[Node] = set()
    for start in document:
        is_open: set[Node] = set()
        stack = [(start, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving:
                is_open.discard(node)
                finished.add(node)
                continue
            if node in is_open:
                raise refusal("$ref", node.path, "refers to itself without end")
            if node in finished:
                continue
            is_open.add(node)
            stack.append((node, True))
            stack.extend((inner, False) for inner in _in_place(node, document))


def _in_place(node: Node, document: Document) -> Iterator[Node]:
    """Yield the schemas that apply to the same value as this one."""
    for word in _LISTS:
        yield from node.words.get(word, ())
    for word in _ONE:
        if word in node.words:
            yield node.words[word]
    yield from node.words.get("dependentSchemas", {}).values()
    if "$ref" in node.words:
        yield document.target(node)
