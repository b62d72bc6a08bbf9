"""Cases: one way in which claims about a value can all be true, without any choice left.

A case is a set of kinds of values, and for each kind what holds of values of that kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenbus.engine.errors import GrammarRejected
    from tokenbus.engine.grammar.schema.node import Claim
    from tokenbus.engine.grammar.schema.refusal import Path

NUMBER = frozenset({"integer", "fraction"})
KINDS = frozenset({"null", "boolean", "string", "array", "object"}) | NUMBER
_NAMES = {"number": {"integer", "fraction"}}


def kind_of(value: Any) -> str:
    """Return the kind of a value; a number without a fractional part is an integer."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if value == int(value) else "fraction"
    return "string" if isinstance(value, str) else "array" if isinstance(value, list) else "object"


def kinds_of_type(names: Any) -> frozenset[str]:
    """Return the kinds that the keyword `type` allows."""
    listed = names if isinstance(names, list) else [names]
    return frozenset().union(*(_NAMES.get(name, {name}) for name in listed)) & KINDS


def identity(value: Any) -> Any:
    """Return what is equal for equal values of JSON: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, list):
        return ("array", tuple(map(identity, value)))
    if isinstance(value, dict):
        return ("object", frozenset((key, identity(inner)) for key, inner in value.items()))
    kind = kind_of(value)
    return ("number", Fraction(value)) if kind in ("integer", "fraction") else (kind, value)


class Fields(NamedTuple):
    """What a schema says of the values of keys: listed, of a pattern, and of all others."""

    properties: dict[str, Claim]
    patterns: dict[str, Claim]
    rest: Claim | None
    path: Path


class Items(NamedTuple):
    """What a schema says of the items of a list: the first ones, and all others."""

    prefix: list[Claim]
    rest: Claim | None


class Contained(NamedTuple):
    """How many items satisfy a claim, from an index on."""

    claim: Claim
    least: int
    most: int | None
    begin: int
    path: Path


class Text(NamedTuple):
    """A pattern or a format that a text has, or has not.

    is_alone: whether no pattern stands beside a format, which would say what it means.
    """

    word: str
    name: str
    holds: bool
    path: Path
    is_alone: bool = True


@dataclass(slots=True)
class SchemaCase:
    """One way in which claims are true.

    low, high: bounds of numbers, each with whether it is itself left out.
    values: what alone is left of a value, None if anything; `excluded` are values left out.
    blocked: by kind, the refusal of what cannot be enforced for it.
    """

    kinds: frozenset[str] = KINDS
    claims: frozenset[Claim] = frozenset()
    values: list[Any] | None = None
    excluded: list[Any] = field(default_factory=list)
    low: tuple[Fraction, bool] | None = None
    high: tuple[Fraction, bool] | None = None
    multiples: tuple[Fraction, ...] = ()
    texts: tuple[Text, ...] = ()
    length: tuple[int, int | None] = (0, None)
    items: tuple[Items, ...] = ()
    num_items: tuple[int, int | None] = (0, None)
    contained: tuple[Contained, ...] = ()
    unique: Path | None = None
    fields: tuple[Fields, ...] = ()
    required: tuple[str, ...] = ()
    absent: frozenset[str] = frozenset()
    num_keys: tuple[int, int | None] = (0, None)
    names: tuple[Claim, ...] = ()
    blocked: dict[str, GrammarRejected] = field(default_factory=dict)

    def with_(self, **changes: Any) -> SchemaCase:
        """Return a copy with changes."""
        return replace(self, **changes)

    @property
    def is_empty(self) -> bool:
        """True if nothing is left, as far as can be seen at once."""
        return not self.kinds or self.values == []

    def of_kinds(self, kinds: frozenset[str] | set[str]) -> SchemaCase:
        """Narrow the kinds."""
        return self.with_(kinds=self.kinds & kinds)

    def without(self, kinds: frozenset[str] | set[str]) -> SchemaCase:
        """Leave out kinds."""
        return self.with_(kinds=self.kinds - kinds)

    def at_least(self, bound: Fraction, *, is_open: bool) -> SchemaCase:
        """Raise the lower bound of numbers."""
        low = max(self.low or (bound, is_open), (bound, is_open))
        return self.with_(low=low)._checked_bounds()

    def at_most(self, bound: Fraction, *, is_open: bool) -> SchemaCase:
        """Lower the upper bound of numbers."""
        high = (bound, is_open)
        if self.high and (self.high[0], not self.high[1]) < (bound, not is_open):
            high = self.high
        return self.with_(high=high)._checked_bounds()

    def _checked_bounds(self) -> SchemaCase:
        if self.low is None or self.high is None:
            return self
        (low, low_open), (high, high_open) = self.low, self.high
        if low > high or (low == high and (low_open or high_open)):
            return self.without(NUMBER)
        first = low.__floor__() + 1 if low_open else low.__ceil__()
        last = high.__ceil__() - 1 if high_open else high.__floor__()
        if first > last:
            return self.without({"integer"})
        return self.without({"fraction"}) if low == high and low.denominator == 1 else self

    def counted(self, what: str, kind: str, least: int = 0, most: int | None = None) -> SchemaCase:
        """Narrow a count: `length`, `num_items` or `num_keys`; the kind goes if none is left."""
        low, high = getattr(self, what)
        low = max(low, least)
        high = most if high is None else high if most is None else min(high, most)
        case = self.with_(**{what: (low, high)})
        return case.without({kind}) if high is not None and low > high else case

    def requires(self, keys: list[str]) -> SchemaCase:
        """Add keys that an object has."""
        required = tuple(dict.fromkeys((*self.required, *keys)))
        case = self.with_(required=required)
        return case.without({"object"}) if self.absent & set(keys) else case

    def lacks(self, key: str) -> SchemaCase:
        """Add a key that an object does not have."""
        case = self.with_(absent=self.absent | {key})
        return case.without({"object"}) if key in self.required else case

    def block(self, kind: str, why: GrammarRejected) -> SchemaCase:
        """Note what cannot be enforced for a kind: refused if that kind is left in the end."""
        return self.with_(blocked={**self.blocked, kind: self.blocked.get(kind, why)})
