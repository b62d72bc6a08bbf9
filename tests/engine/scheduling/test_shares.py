"""How prompts split a step."""

from __future__ import annotations

from tokenbus.engine.prefill import choose_wishes, fair_shares


def test_short_prompt_beside_a_long_one_is_done_in_the_same_step() -> None:
    """Ten tokens are met in full and the long prompt gets all the rest of the step.

    An even split would leave the rest of the short one's half unused.
    """
    assert fair_shares([5000, 10], 1024) == [1014, 10]
    assert fair_shares([5000], 1024) == [1024]
    assert fair_shares([3, 5000, 5000], 11) == [3, 4, 4]


def test_crowd_of_prompts_is_taken_first_come_first() -> None:
    """No more prompts share a step than can be met or have a sixteenth of it."""
    crowd = choose_wishes([100] * 500, 8192)
    assert crowd == list(range(82))
    assert choose_wishes([6000] * 40, 8192) == list(range(16))
    assert choose_wishes([5000], 16) == [0]
    assert choose_wishes([], 64) == []


def test_long_prompts_leave_half_of_a_step_to_short_ones_behind_them() -> None:
    """Eight of the long ones go on, and what is short is met in full."""
    chosen = choose_wishes([6000] * 40 + [30] * 20, 8192)
    assert chosen[:8] == list(range(8))
    assert set(range(40, 60)) <= set(chosen)
    # What the short ones leave goes to more of the long ones.
    assert len(chosen) - 20 == 14
