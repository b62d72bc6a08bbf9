"""Bounds and defaults of a request at the door of the queue.

The engine has the same table in `engine/sampling/bounds.py`, for neither side imports the
other; `tests/test_bounds.py` holds them equal, field by field and edge by edge. They keep all
arithmetic of float32 finite: a logit of 1e4 under all of them together stays below 1e7.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class WireBound:
    """Numbers from `low` to `high`, whole if `kind` is int; with `is_open` not `low` itself."""

    kind: type[int | float]
    low: float
    high: float
    is_open: bool = False


NUMBERS = {
    "n": WireBound(int, 1, 64),
    "max_tokens": WireBound(int, 1, 1_000_000),
    "min_tokens": WireBound(int, 0, 1_000_000),
    "temperature": WireBound(float, 0, 100),
    "top_k": WireBound(int, 0, 2**31 - 1),
    "top_p": WireBound(float, 0, 1, is_open=True),
    "min_p": WireBound(float, 0, 1),
    "repetition_penalty": WireBound(float, 0.01, 100),
    "presence_penalty": WireBound(float, -2, 2),
    "frequency_penalty": WireBound(float, -2, 2),
    "seed": WireBound(int, 0, 2**63 - 1),
    "logprobs": WireBound(int, 0, 20),
    "prompt_logprobs": WireBound(int, 0, 20),
}
# What holds where a request says nothing, whichever door it comes through: Python, the command
# line, a raw entry, a table of crons or arq.
DEFAULTS: Mapping[str, int | float | None] = MappingProxyType(
    {
        "n": 1,
        "max_tokens": 128,
        "min_tokens": 0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": None,
        "logprobs": None,
        "prompt_logprobs": None,
    }
)
# Of these the checkpoint may have defaults of its own: left out is not given as the default.
CHECKPOINT_FIELDS = frozenset({"temperature", "top_k", "top_p", "min_p", "repetition_penalty"})
DEFAULT_PRIORITY = 1
# A bias adds to a logit: -100 forbids, 100 demands.
LOGIT_BIAS = WireBound(float, -100, 100)
TOKEN_ID = WireBound(int, 0, 2**31 - 1)
# Sizes: tokens with a bias, forbidden words and their tokens, stop strings and their characters,
# ids that end a text, characters of a grammar.
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_LENGTH = 16
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_IDS = 64
MAX_GRAMMAR_LENGTH = 262_144
# Levels of objects and lists inside one another, in what the model's template renders.
MAX_DEPTH = 128
