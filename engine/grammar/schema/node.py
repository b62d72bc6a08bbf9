"""Schemas as nodes: one per schema of a document, its keywords in the spelling of draft 2020-12."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenbus.engine.grammar.schema.refusal import Path


@dataclass(eq=False, slots=True)
class Node:
    """One schema.

    number: its place in the order of the document.
    verdict: what a boolean schema says of every value, None for an object.
    alias: what it refers to, if it says nothing else.
    words: its assertions. Schemas inside are nodes; `items` with a list has become `prefixItems`,
        `additionalItems` beside it `items`, `dependencies` its two successors, and `const` a list
        of one in `enum`.
    """

    number: int
    path: Path
    base: str = ""
    verdict: bool | None = None
    alias: Node | None = None
    words: dict[str, Any] = field(default_factory=dict)

    def get(self, word: str) -> Any:
        """Return the value of a keyword, None if the schema does not have it."""
        return self.words.get(word)


class Claim(NamedTuple):
    """That a value satisfies a schema, or that it does not."""

    node: Node
    holds: bool = True

    @property
    def opposite(self) -> Claim:
        """The claim that is true where this one is false."""
        return Claim(self.node, not self.holds)

    @property
    def verdict(self) -> bool | None:
        """Whether the claim is true of every value, or of none; None if it depends."""
        return None if self.node.verdict is None else self.node.verdict is self.holds


# What is claimed of one value, in order of the document: nothing allows everything.
Claims = tuple[Claim, ...]


def all_of(claims: set[Claim] | list[Claim]) -> Claims:
    """Put claims about one value in order, without those that say nothing."""
    kept = {one for claim in claims if (one := _meant(claim)).verdict is not True}
    return tuple(sorted(kept, key=lambda claim: (claim.node.number, claim.holds)))


def _meant(claim: Claim) -> Claim:
    return Claim(meant(claim.node), claim.holds)


def meant(node: Node) -> Node:
    """Return what a mere reference refers to, in the end."""
    while node.alias is not None:
        node = node.alias
    return node


def contradict(claims: Claims) -> bool:
    """Tell whether claims cannot be true together, as far as can be seen at once."""
    held = set(claims)
    return any(claim.verdict is False or claim.opposite in held for claim in claims)
