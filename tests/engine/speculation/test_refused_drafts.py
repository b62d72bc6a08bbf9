"""Drafts that did not pay: tried again at little cost, and back once they do."""

from __future__ import annotations

from array import array
from itertools import cycle, islice
from typing import TYPE_CHECKING

from tokenbus.engine.speculation.drafter import DraftView
from tokenbus.engine.speculation.planner import DraftPlanner

if TYPE_CHECKING:
    from collections.abc import Callable

PHRASE = list(range(100, 120))


class Steps:
    """Steps of one sequence that says a phrase again and again, so that each draft is right.

    `now` goes on by what steps and plans take; a plan takes 40 us, and once `held_up_s` more.
    """

    def __init__(self) -> None:
        self.now, self.held_up_s = 0.0, 0.0
        self._looks = cycle((0.0, 40e-6))
        self.made = DraftPlanner(1 << 20, clock=self._clock)
        self._follows = cycle(PHRASE)
        self._ids = array("i", islice(self._follows, 3 * len(PHRASE)))
        self._view = DraftView(1, "shop", self._ids, len(self._ids), lane="1:acme", request_id=1)

    def _clock(self) -> float:
        if plan_s := next(self._looks):
            self.now += plan_s + self.held_up_s
            self.held_up_s = 0.0
        return self.now

    def run(self, num_steps: int, seconds: Callable[[int], float]) -> tuple[int, int, float]:
        """Take steps that cost so much by their rows.

        Returns: steps with drafts, tokens of all steps, and seconds.
        """
        began, num_drafted, num_tokens = self.now, 0, 0
        for _ in range(num_steps):
            at = self.now
            draft = self.made.plan([self._view]).get(1, []) if self.made.pays(1) else []
            num_rows = 1 + len(draft)
            self._ids.extend(islice(self._follows, num_rows))
            num_drafted, num_tokens = num_drafted + bool(draft), num_tokens + num_rows
            self.now += seconds(num_rows)
            self.made.measured(num_rows, self.now - at)
        return num_drafted, num_tokens, self.now - began


def test_refused_drafts_are_tried_again_for_a_hundredth_of_the_time() -> None:
    """Rows that cost more than steps are tried all the same, and drafts are back once they do not.

    Each draft is right, which tempts most: what they cost beyond steps without is 1 % at most.
    """
    steps = Steps()
    num_drafted, num_tokens, seconds = steps.run(6000, lambda rows: 0.01 * (1 + 1.2 * (rows - 1)))
    assert num_drafted >= 20
    assert seconds < 1.01 * 0.01 * num_tokens
    steps.run(2100, lambda _: 0.01)
    num_drafted, num_tokens, seconds = steps.run(100, lambda _: 0.01)
    assert num_drafted == 100
    assert num_tokens == 1600


def test_plan_that_was_held_up_once_is_followed_by_few_steps_without() -> None:
    """A second that the thread did not run is no measure of plans: 1 % would be 270,000 steps."""
    steps = Steps()
    dear, free = (lambda rows: 370e-6 * rows * rows), (lambda _: 370e-6)
    steps.run(20, dear)
    steps.held_up_s = 1.0
    while steps.held_up_s:
        steps.run(1, dear)
    steps.run(2200, free)
    assert steps.run(100, free)[0] > 90
