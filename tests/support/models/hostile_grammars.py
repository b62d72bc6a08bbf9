"""Grammars that are hostile or merely wrong, drawn from a seed.

Each family varies one way in which a grammar hurts: it does not compile, allows nothing, explodes
in states, in items or in size, recurses without end, or is healthy but heavy. Some are samples seen
to end an engine. A grammar is its family and its seed, so that a run is repeated by its seed.
"""

from __future__ import annotations

import json
import random
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Callable

Draw = random.Random


@dataclass(frozen=True, slots=True)
class HostileGrammar:
    """One grammar and where it came from."""

    family: str
    seed: int
    spec: GrammarSpec


def _word(draw: Draw, least: int = 1, most: int = 6) -> str:
    return "".join(draw.choices(string.ascii_lowercase, k=draw.randint(least, most)))


def _atom(draw: Draw) -> str:
    return draw.choice(
        [
            ".",
            "[a-z]",
            r"\w",
            r"\d",
            "(a|b)",
            "(ab|a|b)",
            "[^x]",
            r"\p{L}",
            "(foo|fo|f)",
            _word(draw),
        ]
    )


# Patterns.


def _allows_nothing(draw: Draw) -> str:
    empty = draw.choice([r"[^\d\D]", r"[^\s\S]", r"[^\w\W]", r"[a&&b]", r"[^\x00-\x{10FFFF}]"])
    before, after = draw.choice(["", "", _word(draw), "x{0,3}"]), draw.choice(["", _word(draw)])
    return f"{before}{empty}{after}"


def _nested_repeats(draw: Draw) -> str:
    first, second = draw.choice([500, 300, 50, 1000]), draw.choice([500, 200, 100, 1000])
    return f"({_atom(draw)}{{1,{first}}}{draw.choice(['', 'c', 'c?', ','])}){{1,{second}}}"


def _late_explosion(draw: Draw) -> str:
    text, depth = _atom(draw), draw.randint(2, 4)
    for level in range(depth):
        text = f"({text}{draw.choice(['', '?'])}{chr(97 + level)}?){{0,{draw.randint(30, 99)}}}"
    return f"{_word(draw)}{text}"


def _many_states(draw: Draw) -> str:
    num = draw.randint(8, 400)
    return draw.choice(
        [
            f"(a|b)*a(a|b){{{num}}}",
            f"(.*{_word(draw)}.{{{num}}}){{1,{draw.randint(1, 9)}}}",
            f"(.*a.{{{num}}}|.*b.{{{num + 1}}}|.*c.{{{num + 2}}})",
            f".*(x.*){{{num}}}",
        ]
    )


def _broken_pattern(draw: Draw) -> str:
    return _word(draw) + draw.choice(
        [
            "(",
            "[a-",
            "a{2,1}",
            r"\q",
            "*",
            "(?=a)",
            r"(a)\1",
            "(?<!b)c",
            "x{,",
            r"\p{Nope}",
            "[z-a]",
        ]
    )


def _deep_parentheses(draw: Draw) -> str:
    depth = draw.choice([50, 300, 3000, 20_000, 60_000])
    return "(" * depth + "a" + draw.choice([")", ")?", ")*", "|b)"]) * depth


def _huge_count(draw: Draw) -> str:
    return f"{_atom(draw)}{{{draw.choice([10_000, 1_000_000, 4_000_000_000])}}}"


def _many_words(draw: Draw) -> str:
    words = [_word(draw, 2, 14) for _ in range(draw.choice([100, 2000, 15_000]))]
    return f"({'|'.join(words)}){draw.choice(['', '+', '{1,9}'])}"


def _long_pattern(draw: Draw) -> str:
    return f"{_word(draw)}|" * draw.choice([60_000, 100_000]) + _word(draw)


# JSON schemas.

_FORMATS = ("uri", "email", "ipv6", "date-time", "uuid", "hostname", "duration", "ipv4")


def _many_properties(draw: Draw) -> Any:
    num, form = draw.choice([50, 400, 2000]), draw.choice(_FORMATS)
    names = [f"{_word(draw)}{index}" for index in range(num)]
    return {
        "type": "object",
        "properties": {name: {"type": "string", "format": form} for name in names},
        "required": draw.choice([[], names, names[::2]]),
        "additionalProperties": draw.choice([False, False, True]),
    }


def _patterned_schema(draw: Draw) -> Any:
    pattern = draw.choice([_nested_repeats, _late_explosion, _many_states, _allows_nothing])(draw)
    schema: Any = {"type": "string", "pattern": pattern}
    if draw.random() < 0.5:
        schema |= {"minLength": draw.randint(0, 40), "maxLength": draw.randint(40, 9000)}
    return draw.choice([schema, {"type": "array", "items": schema}, {"anyOf": [schema] * 3}])


def _self_reference(draw: Draw) -> Any:
    name = _word(draw)
    return draw.choice(
        [
            {"$ref": "#"},
            {"$defs": {name: {"$ref": f"#/$defs/{name}"}}, "$ref": f"#/$defs/{name}"},
            {"$ref": f"#/$defs/{name}"},
            {"anyOf": [{"$ref": "#"}, {"const": name}]},
            {"allOf": [{"$ref": "#"}]},
            {"type": "array", "items": {"$ref": "#"}, "minItems": 1, "title": name},
        ]
    )


def _unsatisfiable(draw: Draw) -> Any:
    low = draw.randint(1, 10**6)
    return draw.choice(
        [
            {"type": "integer", "minimum": low, "maximum": low - 1},
            {"allOf": [{"const": _word(draw)}, {"const": low}]},
            {"type": "array", "minItems": low, "maxItems": low - 1},
            {"type": "string", "minLength": low, "maxLength": low - 1},
            {"enum": []},
            {"type": "object", "required": [_word(draw)], "additionalProperties": False},
            {"type": "integer", "multipleOf": 3 * low, "minimum": 1, "maximum": 2},
            False,
        ]
    )


def _wrong_schema(draw: Draw) -> Any:
    return draw.choice(
        [
            {"type": _word(draw)},
            {_word(draw): 1},
            {"type": "string", "contentEncoding": "base64"},
            {"properties": [_word(draw)]},
            {"type": "string", "pattern": _broken_pattern(draw)},
            {"type": "string", "format": _word(draw)},
            [1, 2],
            {"required": _word(draw), "type": "object"},
            {"type": "string", "maxLength": -draw.randint(1, 9)},
            {"type": "integer", "minimum": "a"},
        ]
    )


def _large_bounds(draw: Draw) -> Any:
    num = draw.choice([1000, 100_000, 10**9])
    inner: Any = draw.choice([{"type": "string", "maxLength": num}, {"type": "integer"}, True])
    for _ in range(draw.randint(1, 4)):
        inner = {
            "type": "array",
            "items": inner,
            "minItems": draw.choice([0, num]),
            "maxItems": num,
        }
    return inner


def _many_values(draw: Draw) -> Any:
    values = [_word(draw, 3, 20) for _ in range(draw.choice([100, 3000, 12_000]))]
    return draw.choice(
        [
            {"enum": values},
            {"anyOf": [{"const": value} for value in values]},
            {"type": "array", "items": {"enum": values}, "minItems": 2, "maxItems": 50},
        ]
    )


def _products(draw: Draw) -> Any:
    sides = [
        {"anyOf": [{"type": "string", "pattern": f"{_atom(draw)}{{{n}}}.*"} for n in range(2, 9)]}
        for _ in range(draw.randint(2, 7))
    ]
    return {"allOf": sides}


def _deep_schema(draw: Draw) -> Any:
    inner: Any = {"const": _word(draw)}
    for _ in range(draw.choice([30, 70, 400])):
        inner = draw.choice(
            [
                {"type": "array", "items": inner},
                {"anyOf": [inner, {"type": "null"}]},
                {"type": "object", "properties": {"a": inner}, "required": ["a"]},
            ]
        )
    return inner


def _long_schema(draw: Draw) -> Any:
    word = _word(draw, 8, 8)
    return {"enum": [f"{word}{number}" for number in range(draw.choice([16_000, 18_000]))]}


# Lark.


def _empty_recursion(draw: Draw) -> str:
    name = _word(draw)
    return draw.choice(
        [
            "start: start",
            f"start: {name}\n{name}: start",
            f'start: start "{name}"',
            f'start: "{name}" start',
            "start: start start",
        ]
    )


def _ambiguous(draw: Draw) -> str:
    one, two = draw.choice("abcdef"), draw.choice("abcdef")
    return draw.choice(
        [
            f'start: "{one}" start | start "{two}" | start start',
            f'start: start "{one}" | "{two}" start | start start | "{one}"',
            f'start: (start | "{one}")* "{two}"?',
            f'start: a a a a\na: b b b b\nb: c c c c\nc: "{one}"* d*\nd: "{two}"* | ',
            f'start: start start start | "{one}" | ',
        ]
    )


def _many_terminals(draw: Draw) -> str:
    num = draw.choice([500, 2500, 3000])
    lines = [f"T{n}: /{_word(draw)}{_atom(draw)}{{0,{draw.randint(1, 60)}}}/" for n in range(num)]
    names = " | ".join(f"T{n}" for n in range(num))
    return "\n".join([f"start: ({names})+", *lines])


def _many_alternatives(draw: Draw) -> str:
    num = draw.choice([2500, 3500])
    names = " | ".join(f"r{n}" for n in range(num))
    return "\n".join([f"start: {names}", *(f'r{n}: "{_word(draw)}" start?' for n in range(num))])


def _set_operations(draw: Draw) -> str:
    left, right = _many_states(draw), _late_explosion(draw)
    return f"start: T\nT: /{left}/ & ~/{right}/ & ~/(?s:.*){_word(draw)}.{{{draw.randint(3, 40)}}}/"


def _broken_lark(draw: Draw) -> str:
    name = _word(draw)
    return draw.choice(
        [
            f"start: {name}",
            f'begin: "{name}"',
            f'start: "{name}',
            "start: (",
            f"start: %json {{{name}}}",
            f'start: "a"\n\n{name} "b"',
            f"start: T\nT: /{_broken_pattern(draw)}/",
            f"start: T\nT: /a/ T /{name}/",
            f"%import {name}.X\nstart: X",
            f'start: {name}::{name}\n{name}: "a"',
            "start: <[99999999]>",
        ]
    )


def _large_repeats(draw: Draw) -> str:
    num = draw.choice([200, 5000, 100_000, 10**9])
    return draw.choice(
        [
            f'start: "{_word(draw)}"{{1,{num}}}',
            f"start: item{{1,{num}}}\nitem: A{{1,{num}}}\nA: /{_atom(draw)}/",
            f"start: (a b){{{num}}}\na: /x{{1,{num}}}/\nb: /y?/",
        ]
    )


def _embedded(draw: Draw) -> str:
    family = draw.choice([_patterned_schema, _many_properties, _unsatisfiable, _self_reference])
    schema = json.dumps(family(draw))
    return f'start: "{_word(draw)}" value\nvalue: %json {schema}'


def _long_lark(draw: Draw) -> str:
    rules = (f"r{number}: {_word(draw, 9, 9)!r}" for number in range(draw.choice([14_000, 15_000])))
    return "\n".join(["start: r0", *rules])


def _deep_lark(draw: Draw) -> str:
    depth = draw.choice([100, 2000, 30_000])
    return "start: " + "(" * depth + '"a"' + ")" * depth


_FAMILIES: dict[GrammarKind, tuple[Callable[[Draw], Any], ...]] = {
    GrammarKind.REGEX: (
        _allows_nothing,
        _nested_repeats,
        _late_explosion,
        _many_states,
        _broken_pattern,
        _deep_parentheses,
        _huge_count,
        _many_words,
        _long_pattern,
    ),
    GrammarKind.JSON_SCHEMA: (
        _many_properties,
        _patterned_schema,
        _self_reference,
        _unsatisfiable,
        _wrong_schema,
        _large_bounds,
        _many_values,
        _products,
        _deep_schema,
        _long_schema,
    ),
    GrammarKind.LARK: (
        _empty_recursion,
        _ambiguous,
        _many_terminals,
        _many_alternatives,
        _set_operations,
        _broken_lark,
        _large_repeats,
        _embedded,
        _deep_lark,
        _long_lark,
    ),
}
_ALL = [(kind, family) for kind, families in _FAMILIES.items() for family in families]


def hostile_grammar(seed: int) -> HostileGrammar:
    """Draw the grammar of a seed; consecutive seeds go through all families."""
    kind, family = _ALL[seed % len(_ALL)]
    drawn = family(Draw(seed))
    source = json.dumps(drawn) if kind is GrammarKind.JSON_SCHEMA else drawn
    name = f"{kind.value}:{family.__name__.strip('_')}"
    return HostileGrammar(name, seed, GrammarSpec(kind, source))


NUM_FAMILIES = len(_ALL)

_SIGNS = {
    "limit": (
        "the limit is",
        "262144 characters",
        "too ",
        "took more than",
        "ended its process",
        "one place",
        "deeper",
    ),
    "nothing": ("nothing can satisfy", "allows nothing", "no token"),
}


def outcome_of(reason: str) -> str:
    """Tell from the reason of a failure how a grammar ended: good, limit, nothing or refused."""
    for outcome, signs in _SIGNS.items():
        if any(sign in reason for sign in signs):
            return outcome
    return "refused" if reason else "good"
