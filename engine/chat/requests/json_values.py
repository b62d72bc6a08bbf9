"""Free JSON values of a request: tools' schemas, calls of earlier turns, a template's arguments."""

from __future__ import annotations

import math
from typing import Any

from tokenbus.engine.chat.requests.bounds import MAX_DEPTH

# Values on one level: an object that holds itself, or one part many times, would not end.
_MAX_WIDTH = 1_000_000
# What no float can hold is read by few as a number, and Python writes no more than 4300 digits.
_MAX_BITS = 1024


def _check_leaf(value: Any) -> None:
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ValueError(f"a number of more than {_MAX_BITS} bits")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no JSON number")
    elif not isinstance(value, (int, float, type(None))):
        raise ValueError(f"{type(value).__name__} is no JSON value")


def check_json(value: dict[str, Any]) -> dict[str, Any]:
    """Return an object of JSON values alone, no deeper than can be rendered. Raises: ValueError."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    raise ValueError("a key is no text")
                below += (*item, *item.values())
            elif isinstance(item, list):
                below += item
            else:
                _check_leaf(item)
        if len(below) > _MAX_WIDTH:
            raise ValueError(f"more than {_MAX_WIDTH} values on one level")
        if not below:
            return value
        level = below
    raise ValueError(f"more than {MAX_DEPTH} levels inside one another")
