"""Usage: the tokens that an answer took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of a job; completion tokens are summed over all choices.

    `reasoning_tokens` are those completion tokens that were reasoning (`AnswerReader` has the
    rule).
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
