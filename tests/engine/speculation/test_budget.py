"""The budget: costs measured, acceptance learned, and as many drafts as pay."""

from __future__ import annotations

import pytest

from tokenbus.engine.speculation.acceptance import Acceptance
from tokenbus.engine.speculation.step_costs import StepCosts

SURE = [1.0] * 15


def measured(*times: tuple[int, float]) -> StepCosts:
    """Return costs after steps of these rows and seconds, each seen often."""
    costs = StepCosts()
    for num_rows, seconds in times:
        for _ in range(5):
            costs.measured(num_rows, seconds)
    return costs


def test_cost_of_a_step_is_a_median_and_never_falls_with_its_rows() -> None:
    """One slow step changes nothing, and a larger step is never thought to be quicker."""
    costs = measured((1, 0.010), (4, 0.012), (8, 0.011))
    costs.measured(1, 5.0)
    curve = [costs.of(rows) for rows in range(1, 1025)]
    assert curve[0] == pytest.approx(0.010)
    assert curve[1] == pytest.approx(0.010 + 0.002 / 3)
    assert curve == sorted(curve)


def test_rows_that_cost_nothing_are_all_used() -> None:
    """Where a step is as long with sixteen rows as with one, every likely draft pays."""
    costs = measured((1, 0.010), (16, 0.010))
    assert costs.best(1, [0.9, 0.8, 0.7, 0.6], 1.0) == 4


def test_rows_that_cost_as_much_as_steps_are_left_alone() -> None:
    """Where rows add up, as in a full batch, not even a certain draft pays."""
    costs = measured((1, 0.010), (2, 0.020), (4, 0.040), (8, 0.080), (16, 0.160))
    assert not costs.may_pay(1, 15)
    assert costs.best(1, [1.0] * 15, 1.0) == 0


def test_number_of_drafts_is_where_tokens_a_second_are_most() -> None:
    """The unlikely end of a draft is not worth its rows; by hand: 1.9/11, 2.6/12, 2.7/13 ms."""
    costs = measured((1, 0.010), (2, 0.011), (3, 0.012), (4, 0.013), (5, 0.014))
    assert costs.best(1, [0.9, 0.7, 0.1, 0.05], 1.0) == 2


def test_gain_below_the_margin_is_none() -> None:
    """A promise of three percent is not worth what drafts cost the host."""
    costs = measured((1, 0.010), (2, 0.0100001))
    assert costs.best(1, [0.03], 1.0) == 0
    assert costs.best(1, [0.06], 1.0) == 1


def test_tokens_that_come_anyway_make_drafts_worth_less() -> None:
    """Where a step brings two tokens without drafts, one more is half as much of a gain."""
    costs = measured((1, 0.010), (2, 0.014))
    assert costs.best(1, [0.9], 1.0) == 1
    assert costs.best(1, [0.9], 2.0) == 0


def test_larger_steps_are_tried_step_by_step() -> None:
    """Where only one row was seen, two are hoped for and sixteen are not; seen, they are known."""
    costs = measured((1, 0.010))
    assert costs.best(1, SURE, 1.0) == 1
    costs.measured(2, 0.010)
    assert costs.best(1, SURE, 1.0) == 3
    for _ in range(3):
        assert costs.best(1, SURE, 1.0) == 3
        costs.measured(4, 0.040)
    assert costs.best(1, SURE, 1.0) == 1
    assert costs.may_pay(1, 15)


def test_first_step_of_a_size_may_be_held_up() -> None:
    """One that waited for a compiler or the machine is tried twice more before it is believed."""
    costs = measured((1, 0.010))
    costs.measured(2, 3.0)
    assert costs.best(1, SURE, 1.0) == 1
    for _ in range(4):
        costs.measured(2, 0.010)
    assert costs.of(2) == pytest.approx(0.010)
    assert costs.best(1, SURE, 1.0) == 3


def test_size_that_was_not_seen_for_long_is_tried_again() -> None:
    """What was dear on a busy machine is asked again some thousand steps later."""
    costs = measured((1, 0.010), (2, 0.500))
    assert not costs.may_pay(1, 15)
    for _ in range(3000):
        costs.measured(1, 0.010)
    assert costs.best(1, SURE, 1.0) == 1


@pytest.mark.parametrize("num_seqs", [1, 9])
def test_step_without_drafts_is_taken_before_any_with(num_seqs: int) -> None:
    """What drafts cost nobody knows unless steps without are seen, lately and of this size."""
    costs = measured((2 * num_seqs, 0.010))
    assert costs.best(num_seqs, SURE, num_seqs) == 0
    costs.measured(num_seqs, 0.006)
    assert costs.best(num_seqs, SURE, num_seqs) > 0
    for _ in range(3000):
        costs.measured(2 * num_seqs, 0.010)
    assert costs.best(num_seqs, SURE, num_seqs) == 0


def test_batches_past_every_table_get_no_drafts() -> None:
    """A thousand sequences leave no room for drafts, and what is absurd is not measured."""
    costs = measured((1, 0.010), (1024, 0.020))
    costs.measured(5000, 1.0)
    costs.measured(0, 1.0)
    assert costs.of(1024) == pytest.approx(0.020)
    assert not costs.may_pay(1024, 15)
    assert costs.best(1024, SURE, 1024.0) == 0


def test_acceptance_is_learned_by_lane_drafter_and_strength() -> None:
    """Misses of one lane lower its own share, and what a new lane begins with."""
    acceptance = Acceptance(2)
    before = acceptance.of("quiet")[0][5]
    for _ in range(60):
        acceptance.learn(acceptance.of("busy"), 0, 5, 0, is_wrong=True)
    assert acceptance.of("busy")[0][5] < 0.15 < before
    assert acceptance.of("busy")[0][6] > 0.5
    assert acceptance.of("busy")[1][5] == before
    assert acceptance.of("quiet")[0][5] == before
    assert acceptance.of("new")[0][5] < 0.15


def test_acceptance_of_many_lanes_is_bounded() -> None:
    """The oldest lane begins anew."""
    acceptance = Acceptance(1)
    for number in range(300):
        acceptance.of(f"lane {number}")
    assert len(acceptance._lanes) == 256
