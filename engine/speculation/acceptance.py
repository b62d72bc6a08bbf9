"""Acceptance of drafts: how often they were right, by drafter and evidence, lane by lane."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from operator import mul, neg

from tokenbus.engine.speculation.drafter import MAX_STRENGTH

# Shares of right tokens by drafter and strength, from 0 to `MAX_STRENGTH`.
Shares = list[list[float]]
# Weight of the newest token in an average: half of it is of the last 22.
_NEWEST = 1 / 32
# Tokens less likely than that are worth no row, even where it costs next to nothing.
LEAST_CHANCE = 0.01
# Lanes with averages of their own, those that began last.
_MAX_LANES = 256


class Acceptance:
    """Shares of right tokens, learned from every guess, whether or not it was verified.

    A new lane begins with what was learned of all, and that with a guess: matches of 3, 6 and 16
    tokens are right in 1/2, 2/3 and 5/6 of the cases.
    """

    def __init__(self, num_drafters: int) -> None:
        prior = [strength / (strength + 3) for strength in range(MAX_STRENGTH + 1)]
        self._all: Shares = [list(prior) for _ in range(num_drafters)]
        self._lanes: dict[str, Shares] = {}

    def of(self, lane: str) -> Shares:
        """Return the shares of a lane; they change with what is learned."""
        shares = self._lanes.get(lane)
        if shares is None:
            if len(self._lanes) >= _MAX_LANES:
                del self._lanes[next(iter(self._lanes))]
            shares = self._lanes[lane] = [list(each) for each in self._all]
        return shares

    def learn(
        self, lane: Shares, drafter: int, strength: int, num_right: int, *, is_wrong: bool
    ) -> None:
        """Take a guess of one strength into account: right tokens, and maybe a wrong one."""
        for shares in (lane[drafter], self._all[drafter]):
            last = strength + num_right
            for at in range(strength, min(last, MAX_STRENGTH)):
                shares[at] += (1.0 - shares[at]) * _NEWEST
            for _ in range(max(strength, MAX_STRENGTH), last):
                shares[MAX_STRENGTH] += (1.0 - shares[MAX_STRENGTH]) * _NEWEST
            if is_wrong:
                shares[min(last, MAX_STRENGTH)] *= 1.0 - _NEWEST


def chances_of(
    shares: list[float], strength: int, num_tokens: int, first: float = 1.0
) -> list[float]:
    """Return of the tokens of a guess how likely each is reached and right, never rising.

    Each token has one more alike before it than the last; `first` is the chance to get there.
    Those that are worth no row, and what follows them, are left out.
    """
    steps = shares[strength : strength + num_tokens]
    steps += shares[-1:] * (num_tokens - len(steps))
    chances = list(accumulate(steps, mul, initial=first))[1:]
    if chances and chances[-1] < LEAST_CHANCE:
        return chances[: bisect_right(chances, -LEAST_CHANCE, key=neg)]
    return chances
