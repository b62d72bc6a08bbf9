"""Fast JSON for values that are mostly long lists and texts.

When a crowd of answers ends in one step, their results are what its readers wait for.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


def to_json(value: Any) -> bytes:
    """Write a value without floats as compact JSON in UTF-8; half a surrogate pair is escaped."""
    try:
        return _encode(value)
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":")).encode()
