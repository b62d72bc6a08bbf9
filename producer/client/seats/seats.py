"""The seats of a pool: when each falls free, and so when the last waiting job will be begun.

Few waiting jobs are begun as those end that run now. Where jobs generate all that they may, it is
known how long each will still run, and how long the next ones will: to the second, not in the mean.
Where they end by themselves before that, nobody knows, and the drain rate tells better.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# More waiting jobs are not followed one by one: over many the drain rate tells as well.
MAX_FOLLOWED = 2048
# Fewer ended jobs say little of the next ones.
_MIN_ENDED = 8
# Where so large a part of them generated all that they might, the next ones are taken to.
_USE_ALL = 0.9
# The golden ratio's fraction: multiples of it, less their whole part, lie evenly whatever their
# number.
_STRIDE = 0.6180339887498949


class EndedSeat(NamedTuple):
    """A job that has ended: how long it had its seat, its tokens, and how many they might be."""

    lasted_s: float
    tokens: int
    bound_tokens: int


class HeldSeat(NamedTuple):
    """A job that runs: since when it has its seat, and how many tokens it may generate in it."""

    age_s: float
    bound_tokens: int


@dataclass(frozen=True, slots=True)
class SeatTimes:
    """How long seats are kept: the seconds for each token that a job may generate.

    `lasted_s` are those of jobs that ended lately, in order.
    """

    s_per_token: float
    lasted_s: tuple[float, ...]

    @classmethod
    def of(cls, ended: Sequence[EndedSeat]) -> Self | None:
        """Take them from ended jobs; None of too few, and where jobs end before their bound."""
        lasted_s = sum(each.lasted_s for each in ended)
        use_all = sum(each.tokens >= each.bound_tokens for each in ended)
        if len(ended) < _MIN_ENDED or use_all < _USE_ALL * len(ended) or lasted_s <= 0:
            return None
        return cls(
            s_per_token=lasted_s / sum(each.bound_tokens for each in ended),
            lasted_s=tuple(sorted(each.lasted_s for each in ended)),
        )

    def left_s(self, held: HeldSeat) -> float:
        """Return for how long a job still has its seat."""
        return max(0.0, held.bound_tokens * self.s_per_token - held.age_s)

    def next_s(self, num_jobs: int, bound_tokens: int) -> list[float]:
        """Return for how long each of the next jobs will have a seat.

        They differ as those before did, and have so many tokens together.
        """
        num = len(self.lasted_s)
        drawn = [
            self.lasted_s[int((0.5 + number * _STRIDE) % 1.0 * num)] for number in range(num_jobs)
        ]
        scale = bound_tokens * self.s_per_token / (sum(drawn) or 1.0)
        return [scale * each for each in drawn]


@dataclass(frozen=True, slots=True)
class Seats:
    """The seats of the workers that are ready, and of each that will be.

    `held` are some of those that are taken, which are `num_held`; `num_free` are not. A worker that
    starts brings `num_each`, one at least.
    """

    times: SeatTimes
    held: tuple[HeldSeat, ...]
    num_held: int
    num_free: int
    num_each: int

    def seconds_until_begun(
        self, num_jobs: int, bound_tokens: int, ready_in_s: Iterable[float]
    ) -> float:
        """Return the seconds until so many jobs have a seat, with so many tokens to generate.

        `ready_in_s` has for each worker that starts when it will be ready; there is a seat or one.
        """
        left_s = sorted(map(self.times.left_s, self.held))
        free_at_s = [0.0] * self.num_free
        if left_s:
            # Those that were not looked at are as those that were.
            free_at_s += (
                left_s[number * len(left_s) // self.num_held] for number in range(self.num_held)
            )
        for ready_s in ready_in_s:
            free_at_s += [ready_s] * self.num_each
        heapq.heapify(free_at_s)
        at_s = 0.0
        for lasts_s in self.times.next_s(num_jobs, bound_tokens):
            at_s = max(at_s, free_at_s[0])
            heapq.heapreplace(free_at_s, at_s + lasts_s)
        return at_s
