"""The sampling plan: what a batch needs of the sampler, known on the host before the launch."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag, auto
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenbus.engine.types import SamplingParams

# Below this a difference of 1e-4 in logits is already e^10: the draw is the argmax, and dividing by
# the temperature would come near the range of float32.
GREEDY_TEMPERATURE = 1e-5
# Draws of a step behind drafted tokens, and before the first of each draft: no more than there is
# scratch memory for in the smallest batch.
MAX_DRAFTED_ROWS = 128
# Rows of a step of decoding sequences and tokens that grammars force, where nobody drafts.
MAX_FORCED_ROWS = 32


class Feature(IntFlag):
    """One bit per part of the sampler that costs time."""

    NONE = 0
    RANDOM = auto()
    PENALTIES = auto()
    BIAS = auto()
    BAD_WORDS = auto()
    MIN_TOKENS = auto()
    TOP_K = auto()
    TOP_P = auto()
    MIN_P = auto()
    LOGPROBS = auto()


LOGIT_RULES = Feature.PENALTIES | Feature.BIAS | Feature.BAD_WORDS | Feature.MIN_TOKENS
FILTERS = Feature.TOP_K | Feature.TOP_P | Feature.MIN_P
# What reads the tokens that a row has drawn.
HISTORY = Feature.PENALTIES | Feature.BAD_WORDS


@dataclass(frozen=True, slots=True)
class SamplingPlan:
    """The union of what the rows of a batch use; hashable, so that it can key a captured graph."""

    features: Feature = Feature.NONE
    num_top_logprobs: int = 0

    def has(self, features: Feature) -> bool:
        """Return True if any of these features is in use."""
        # As integers: to make a flag of them again takes ten times as long.
        return int.__and__(self.features, features) != 0

    def union(self, other: SamplingPlan) -> SamplingPlan:
        """Return the plan that serves both."""
        return SamplingPlan(
            self.features | other.features, max(self.num_top_logprobs, other.num_top_logprobs)
        )


def is_greedy(params: SamplingParams) -> bool:
    """Return True if the draw is the argmax."""
    return params.temperature < GREEDY_TEMPERATURE


def plan_of(params: SamplingParams) -> SamplingPlan:
    """Return what one row with these parameters needs."""
    is_random = not is_greedy(params)
    has_penalties = (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )
    return _plan_using(
        is_random,
        has_penalties,
        bool(params.logit_bias),
        bool(params.bad_words),
        params.min_tokens > 0,
        is_random and params.top_k > 0,
        is_random and params.top_p < 1.0,
        is_random and params.min_p > 0.0,
        params.logprobs,
    )


@lru_cache(maxsize=4096)
def _plan_using(*uses: bool | int | None) -> SamplingPlan:
    """Return the plan of these features, in their order; the last is the number of logprobs."""
    *used, num_top = uses
    features = Feature.NONE
    for feature, is_used in zip(Feature, (*used, num_top is not None), strict=True):
        if is_used:
            features |= feature
    return SamplingPlan(features, num_top or 0)
