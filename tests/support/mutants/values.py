"""Values that a field of a request may be given by mistake or on purpose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.requests.bounds import LOGIT_BIAS, NUMBERS

if TYPE_CHECKING:
    import random

_POWERS = [2**bits for bits in (7, 8, 15, 16, 24, 31, 32, 53, 63, 64, 128)]
WHOLE = [
    *(sign * (power + step) for power in _POWERS for sign in (1, -1) for step in (-1, 0, 1)),
    *(-1, 0, 1, 2, 10**30, -(10**30), 10**400, -(10**400)),
]
FRACTIONS = [
    *(0.0, -0.0, 0.5, -0.5, 1.0, 2.0, 1e-320, 1e-300, 1e-45, 1e-38, 1e-5, 3.4e38, 3.5e38, 1e300),
    *(-3.5e38, -1e300, 1.7976931348623157e308, math.nan, math.inf, -math.inf),
]
TEXTS = [
    *("", " ", "x", "\x00", "\ud800", "a\udfffb", "\U0001f600", "é" * 300, "1e5", "null", "-1"),
    *(
        "{{ 7 * 7 }}",
        "{% for x in range(10**9) %}{% endfor %}",
        "\r\n*3\r\n$3",
        "../../etc",
        "%s%n",
    ),
    *("\u202e\u0000\uffff", "<|im_end|>", "A" * 5000, "://", "http://[::1", "00-" + "0" * 64),
]
GRAMMARS = [
    *("(", "[", "a{99999999}", "(a*)*b", "(a|a)*$", "[" * 500, "(" * 500, "\\", "\x00", ".*"),
    *('{"type":"object"', '{"$ref":"#"}', '{"type":"nothing"}', '{"enum":[]}', "[]", '["a"]', "{}"),
    *(
        '{"allOf":[{"$ref":"#"}]}',
        '{"minLength":1e999}',
        '{"pattern":"("}',
        "start: start",
        "start:",
    ),
    *('{"type":"array","minItems":1000000000}', 'start: "a" start', '{"minimum":1e400}', "null"),
]
PATTERNS = ["json_schema", "regex", "choice", "lark", "xml", "", 1, None]


def nested(depth: int, kind: type) -> Any:
    """Return `depth` lists or objects inside one another."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def _edges(rng: random.Random, name: str) -> Any:
    """Return a number at or beside an end of a field's bounds."""
    bound = NUMBERS[name]
    end = rng.choice((bound.low, bound.high))
    if bound.kind is int:
        return int(end) + rng.choice((-1, 0, 1))
    return math.nextafter(end, rng.choice((-math.inf, end, math.inf)))


def anything(rng: random.Random) -> Any:
    """Return a value of any type and size."""
    kind = rng.randrange(12)
    if kind < 3:
        return rng.choice(WHOLE)
    if kind < 5:
        return rng.choice(FRACTIONS)
    if kind < 7:
        return rng.choice(TEXTS)
    if kind == 7:
        return rng.choice((True, False, None))
    if kind == 8:
        return nested(rng.choice((1, 5, 100, 200, 900)), rng.choice((list, dict)))
    if kind == 9:
        return [anything(rng) for _ in range(rng.randrange(4))]
    if kind == 10:
        return {rng.choice(TEXTS): anything(rng) for _ in range(rng.randrange(4))}
    return [rng.choice((0, 1, 5, "x", None))] * rng.choice((65, 1025, 20_000))


def _bias(rng: random.Random) -> Any:
    ids = [rng.choice((*range(1, 6), 511, 512, *WHOLE)) for _ in range(rng.randrange(1, 4))]
    values = (*FRACTIONS, LOGIT_BIAS.low, LOGIT_BIAS.high, True, "1", 10**400)
    return {token_id: rng.choice(values) for token_id in ids}


def _tool(rng: random.Random) -> Any:
    parameters = rng.choice((nested(rng.choice((3, 127, 128, 400)), dict), {"$ref": "#"}, {}))
    function = {"name": rng.choice(("f", "", "f" * 65, *TEXTS)), "parameters": parameters}
    return {"type": rng.choice(("function", "tool")), "function": function}


def _message(rng: random.Random) -> Any:
    call = rng.choice(({"function": {"name": "f", "arguments": "{"}}, {}, nested(150, dict)))
    return {
        "role": rng.choice(("user", "assistant", "tool", "", "x" * 65, 5)),
        "content": rng.choice((*TEXTS, None, 5)),
        "tool_calls": rng.choice((None, [call], [])),
    }


def odd(rng: random.Random, name: str) -> Any:
    """Return a value for one field: often of its own kind and only nearly right."""
    if rng.random() < 0.3:
        return anything(rng)
    if name in NUMBERS:
        return _edges(rng, name) if rng.random() < 0.5 else rng.choice((*WHOLE, *FRACTIONS, True))
    if name == "logit_bias":
        return _bias(rng)
    if name in ("stop_token_ids", "token_ids"):
        return [rng.choice((1, 2, 511, 512, *WHOLE, True, 1.0)) for _ in range(rng.randrange(5))]
    if name == "bad_words":
        return [[rng.choice((1, 2, 511, 512, *WHOLE))] * rng.choice((0, 1, 3, 16, 17))]
    if name == "stop":
        return [rng.choice(TEXTS) for _ in range(rng.choice((1, 2, 64, 65)))]
    if name == "grammar":
        return {"kind": rng.choice(PATTERNS), "source": rng.choice(GRAMMARS)}
    if name == "tools":
        return [_tool(rng) for _ in range(rng.choice((0, 1, 2, 129)))]
    if name == "messages":
        return [_message(rng) for _ in range(rng.choice((0, 1, 3)))]
    return rng.choice(TEXTS)
