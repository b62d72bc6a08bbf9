"""Bounds of sampling parameters: what a request may ask for, offline and through the queue.

They keep all arithmetic of float32 finite: a logit of 1e4 under all of them together stays below
1e7.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bound:
    """Numbers from `low` to `high`, whole if `kind` is int; with `is_open` not `low` itself."""

    kind: type[int | float]
    low: float
    high: float
    is_open: bool = False


NUMBERS = {
    "n": Bound(int, 1, 64),
    "max_tokens": Bound(int, 0, 1_000_000),
    "min_tokens": Bound(int, 0, 1_000_000),
    "temperature": Bound(float, 0, 100),
    "top_k": Bound(int, 0, 2**31 - 1),
    "top_p": Bound(float, 0, 1, is_open=True),
    "min_p": Bound(float, 0, 1),
    "repetition_penalty": Bound(float, 0.01, 100),
    "presence_penalty": Bound(float, -2, 2),
    "frequency_penalty": Bound(float, -2, 2),
    "seed": Bound(int, -(2**63), 2**63 - 1),
    "logprobs": Bound(int, 0, 20),
    "prompt_logprobs": Bound(int, 0, 20),
}
# What the queue alone reads; 0 is the most urgent.
PRIORITY = Bound(int, 0, 2)
MAX_METADATA = 32
MAX_MODEL_LENGTH = 256
REASONING_TOKENS = Bound(int, 0, 1_000_000)
# A bias adds to a logit: -100 forbids, 100 demands.
LOGIT_BIAS = Bound(float, -100, 100)
TOKEN_ID = Bound(int, 0, 2**31 - 1)
# Sizes: tokens with a bias, forbidden words and their tokens, stop strings and their characters,
# ids that end a text, characters of a grammar.
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_LENGTH = 16
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024
MAX_STOP_IDS = 64
MAX_GRAMMAR_LENGTH = 5_242_880
MAX_TOOLS = 128
# Levels of objects and lists inside one another, in what the model's template renders.
MAX_DEPTH = 128
ROLE_PATTERN = r"^[A-Za-z0-9_.:@/-]{1,64}$"
