"""How often drafted tokens were right: by drafter and by what spoke for them, lane by lane."""

from __future__ import annotations

from tokenbus.engine.speculation.drafter import MAX_STRENGTH

# Weight of the newest token in an average: half of it is of the last 22.
_NEWEST = 1 / 32
# Lanes with averages of their own, those that began last.
_MAX_LANES = 256


class Acceptance:
    """Shares of right tokens, learned from every guess, whether or not it was verified.

    A new lane begins with what was learned of all, and that with a guess: matches of 3, 6 and 16
    tokens are right in 1/2, 2/3 and 5/6 of the cases.
    """

    def __init__(self, num_drafters: int) -> None:
        prior = [strength / (strength + 3) for strength in range(MAX_STRENGTH + 1)]
        self._all = [list(prior) for _ in range(num_drafters)]
        self._lanes: dict[str, list[list[float]]] = {}

    def of(self, lane: str) -> list[list[float]]:
        """Return the shares of a lane, by drafter and strength; they change with what is learned.

        Strengths go from 0 to `MAX_STRENGTH`.
        """
        shares = self._lanes.get(lane)
        if shares is None:
            if len(self._lanes) >= _MAX_LANES:
                del self._lanes[next(iter(self._lanes))]
            shares = self._lanes[lane] = [list(each) for each in self._all]
        return shares

    def learn(self, lane: str, drafter: int, strength: int, *, is_right: bool) -> None:
        """Take one drafted token into account."""
        for shares in (self.of(lane)[drafter], self._all[drafter]):
            shares[strength] += (is_right - shares[strength]) * _NEWEST
