"""Numbers: bounds, steps and left-out values of a case, as keywords."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tokenbus.engine.grammar.schema.case import SchemaCase
from tokenbus.engine.grammar.schema.refusal import refusal

if TYPE_CHECKING:
    from tokenbus.engine.grammar.schema.refusal import Path

# Left-out numbers that are cut out of a range one by one.
_MAX_EXCLUDED = 64


def number_schemas(case: SchemaCase, path: Path) -> list[dict[str, Any]]:
    """Return keywords of the numbers of a case; none if nothing is left.

    Raises: GrammarRejected.
    """
    if "integer" not in case.kinds and _spans_integer(case):
        raise refusal("type", path, "numbers that are not whole cannot be told from whole ones")
    points = sorted(
        {
            Fraction(repr(value))
            for value in case.excluded
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
    )
    if len(points) > _MAX_EXCLUDED:
        raise refusal("not", path, f"more than {_MAX_EXCLUDED} numbers left out")
    pieces, rest = [], case
    for point in points:
        pieces.append(rest.at_most(point, is_open=True))
        rest = rest.at_least(point, is_open=True)
    pieces.append(rest)
    name = "fraction" if "fraction" in case.kinds else "integer"
    return [_keywords(piece, path) for piece in pieces if name in piece.kinds]


def _spans_integer(case: SchemaCase) -> bool:
    """Tell whether a whole number lies between the bounds."""
    between = SchemaCase(kinds=frozenset({"integer"}))
    if case.low is not None:
        between = between.at_least(case.low[0], is_open=case.low[1])
    if case.high is not None:
        between = between.at_most(case.high[0], is_open=case.high[1])
    return bool(between.kinds)


def _keywords(case: SchemaCase, path: Path) -> dict[str, Any]:
    keywords: dict[str, Any] = {}
    if case.low is not None:
        word = "exclusiveMinimum" if case.low[1] else "minimum"
        keywords[word] = _written(case.low[0], word, path)
    if case.high is not None:
        word = "exclusiveMaximum" if case.high[1] else "maximum"
        keywords[word] = _written(case.high[0], word, path)
    # The library counts the digits before the point in 64 bits.
    for word, bound in keywords.items():
        if not -(2**63) <= bound < 2**63:
            reason = f"{bound} has more than 64 bits before the point; leave it out"
            raise refusal(word, path, reason)
    if case.multiples:
        numerator = math.lcm(*(one.numerator for one in case.multiples))
        denominator = math.gcd(*(one.denominator for one in case.multiples))
        step = Fraction(numerator, denominator)
        keywords["multipleOf"] = _written(step, "multipleOf", path)
    return keywords


def _written(number: Fraction, word: str, path: Path) -> int | float:
    """Return a number as JSON spells it. Raises: GrammarRejected if it has too many digits."""
    if number.denominator == 1 and (abs(number.numerator) < 2**53 or number == 2**63 - 1):
        return number.numerator
    as_float = float(number)
    if Fraction(Decimal(repr(as_float))) != number:
        raise refusal(word, path, "more digits than a bound may have")
    return as_float
