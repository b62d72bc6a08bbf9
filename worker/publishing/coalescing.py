"""Coalescing: a job's next tokens held back under load, so that more share an entry."""

from __future__ import annotations

MAX_HOLD_S = 0.02
_FIRST_HOLD_S = 0.001
# Shares of the time during which calls are under way: above the upper one the hold grows, below the
# lower one it shrinks. Above the upper one there is hardly any idle time, and every job waits for
# its turn.
_BUSY_SHARE = 0.9
_CALM_SHARE = 0.6
_WINDOW_S = 0.1


class Coalescing:
    """The hold in force: 0 while the server keeps up, longer while calls follow each other."""

    def __init__(self) -> None:
        self.hold_s = 0.0
        self._busy_s = 0.0
        self._since: float | None = None

    def called(self, started_at: float, ended_at: float) -> None:
        """Note one call."""
        if self._since is None:
            self._since = started_at
        self._busy_s += ended_at - started_at
        window_s = ended_at - self._since
        if window_s < _WINDOW_S:
            return
        share = self._busy_s / window_s
        if share > _BUSY_SHARE:
            self.hold_s = min(MAX_HOLD_S, max(_FIRST_HOLD_S, 1.5 * self.hold_s))
        elif share < _CALM_SHARE:
            self.hold_s = self.hold_s / 2 if self.hold_s > _FIRST_HOLD_S else 0.0
        self._since, self._busy_s = ended_at, 0.0
