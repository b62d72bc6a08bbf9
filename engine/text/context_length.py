"""The context length of a model: by its positions, learned or rotary, and their scaling.

What a scaling does past the length that the model was made for decides whether a longer one may be
asked for. Scalings that are the same for every length (linear, yarn) reach as far as their factor
says. longrope and dynamic change the frequencies of all positions with the length, so that a longer
limit would change every answer, and pages of shorter texts would not fit longer ones; any other
position past the last one was never trained, and a learned one is not in its table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tokenbus.engine.errors import RequestRejected

# Where configurations keep the number of positions that have no `max_position_embeddings`.
_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class ContextLength:
    """Tokens of the longest text: by default, and at most on request, with what ends it there."""

    default: int
    most: int
    why: str

    def chosen(self, wanted: int | None) -> int:
        """Return the length to serve. Raises: RequestRejected if the model cannot have it."""
        if wanted is not None and wanted > self.most:
            raise RequestRejected("max_model_len", f"{wanted} is above {self.most}: {self.why}")
        return wanted or self.default


def context_length(config: Any) -> ContextLength:
    """Return the lengths that a transformers config allows.

    Raises: ValueError if it has no whole number of positions.
    """
    positions = _positions(config)
    lengths = [_of_rope(positions, params, config) for params in _ropes(config)]
    return min(lengths, key=lambda length: (length.most, length.default), default=_plain(positions))


def _plain(positions: int) -> ContextLength:
    return ContextLength(positions, positions, f"the model has {positions} positions")


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Return the rotary parameters of a model, one for each kind of layer that has its own."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    return nested or ([rope] if rope else [])


def _of_rope(positions: int, params: dict[str, Any], config: Any) -> ContextLength:
    kind = params.get("rope_type", "default")
    original = params.get("original_max_position_embeddings")
    original = original or getattr(config, "original_max_position_embeddings", None) or positions
    if kind == "longrope":
        length = min(positions, _whole("original_max_position_embeddings", original))
        why = f"longrope turns every position of a text differently past {length} tokens"
        return ContextLength(length, length, f"{why}, so that a longer limit changes all answers")
    if kind == "dynamic":
        why = f"dynamic scaling turns every position differently past {positions} tokens"
        why = f"{why}, so that a longer limit changes all answers"
        return ContextLength(positions, positions, why)
    if kind in ("linear", "yarn"):
        base = _whole("original_max_position_embeddings", original) if kind == "yarn" else positions
        factor = params.get("factor", 1.0)
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor < 1:
            raise ValueError(f"the factor of its {kind} scaling is {factor!r}")
        most = max(positions, math.floor(base * min(factor, 1e6)))
        return ContextLength(
            positions, most, f"{kind} scaling by {factor:g} of {base} positions ends there"
        )
    return _plain(positions)


def _positions(config: Any) -> int:
    for name in _NAMES:
        value = getattr(config, name, None)
        if value is not None:
            return _whole(name, value)
    raise ValueError(f"its config says by none of {', '.join(_NAMES)} how long a text may be")


def _whole(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} of its config is {value!r}, not a number of tokens")
    return value
