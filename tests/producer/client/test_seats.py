"""The seats of a pool: when they fall free, held to pools of which every job is known."""

from __future__ import annotations

import heapq
import random
from typing import TYPE_CHECKING

import pytest

from tokenbus.producer.client.seats.seats import EndedSeat, HeldSeat, Seats, SeatTimes

if TYPE_CHECKING:
    from collections.abc import Sequence

TOKENS_PER_S, NUM_SEATS = 25.0, 16


def times(*lasted_s: float) -> SeatTimes:
    """Return those of jobs that generate ten tokens a second, all that they may."""
    found = SeatTimes.of([EndedSeat(each, round(10 * each), round(10 * each)) for each in lasted_s])
    assert found is not None
    return found


def test_waiting_jobs_are_begun_as_those_that_run_end() -> None:
    """Each seat falls free when its job has all its tokens, and is taken for as long as the next.

    A job that should have ended already may end at any moment.
    """
    held = (HeldSeat(age_s=1, bound_tokens=30), HeldSeat(0, 60), HeldSeat(9, 80))
    seats = Seats(times(*[4.0] * 8), held, num_held=3, num_free=0, num_each=3)
    # The third is late; the others end after 2 and 6 s, a new job lasts 4 s.
    begun_s = [seats.seconds_until_begun(num, 40 * num, []) for num in range(1, 7)]
    assert begun_s == pytest.approx([0, 2, 4, 6, 6, 8])


def test_free_seats_are_taken_at_once_and_those_of_a_start_once_it_is_ready() -> None:
    """Nobody waits for a seat that nobody has; a worker that is ready brings all of its own."""
    seats = Seats(times(*[4.0] * 8), (HeldSeat(0, 500),), num_held=1, num_free=2, num_each=3)
    assert seats.seconds_until_begun(2, 2000, [7.0]) == 0
    assert seats.seconds_until_begun(5, 5000, [7.0]) == pytest.approx(7)
    # The next is begun as the first that runs ends.
    assert seats.seconds_until_begun(6, 6000, [7.0]) == pytest.approx(50)
    # No worker lives: the first that is ready takes three.
    alone = Seats(seats.times, (), num_held=0, num_free=0, num_each=3)
    assert alone.seconds_until_begun(3, 300, [7.0, 9.0]) == pytest.approx(7)
    assert alone.seconds_until_begun(4, 400, [7.0, 9.0]) == pytest.approx(9)


def test_held_jobs_that_were_not_looked_at_are_as_those_that_were() -> None:
    """Four of which two were read end as these do, two and two."""
    held = (HeldSeat(0, 10), HeldSeat(0, 50))
    seats = Seats(times(*[100.0] * 8), held, num_held=4, num_free=0, num_each=4)
    begun_s = [seats.seconds_until_begun(num, 1000 * num, []) for num in (1, 2, 3, 4)]
    assert begun_s == pytest.approx([1, 1, 5, 5])


def test_jobs_that_end_before_their_bound_say_nothing_of_when_others_will() -> None:
    """Nor do a handful, or such as took no time."""
    whole, early = EndedSeat(4, 40, 40), EndedSeat(4, 40, 400)
    assert SeatTimes.of([whole] * 7) is None
    assert SeatTimes.of([EndedSeat(0, 40, 40)] * 8) is None
    assert SeatTimes.of([whole] * 8 + [early]) is None
    found = SeatTimes.of([whole] * 9 + [early])
    # Those few count as long as they were allowed to be.
    assert found is not None
    assert found.s_per_token == pytest.approx(40 / 760)


def test_last_waiting_job_is_begun_when_the_seats_say() -> None:
    """Within 20 % in nine pools of ten, of few waiting jobs and of many, lengths as those of chats.

    The drain rate, were it known to the last digit, tells fewer than eight of ten.
    """
    draw = random.Random(11)
    by_seats = by_rate = 0
    for _ in range(200):
        lengths = [min(500, 1 + int(draw.lognormvariate(3.0, 0.8))) for _ in range(1000)]
        ended, running, waiting = lengths[:128], lengths[128:900], lengths[900:]
        held = _running(running)
        waiting = waiting[: draw.randrange(4, 60)]
        true_s = _begun_s([bound / TOKENS_PER_S - age_s for age_s, bound in held], waiting)
        rate_s = sum(waiting) / (NUM_SEATS * TOKENS_PER_S)
        found = SeatTimes.of([EndedSeat(each / TOKENS_PER_S, each, each) for each in ended])
        assert found is not None
        seats = Seats(found, tuple(held), NUM_SEATS, 0, NUM_SEATS)
        told_s = seats.seconds_until_begun(len(waiting), sum(waiting), [])
        by_seats += abs(told_s - true_s) <= 0.2 * true_s
        by_rate += abs(rate_s - true_s) <= 0.2 * true_s
    assert by_seats >= 180, by_seats
    assert by_rate < 160, by_rate


def _running(lengths: Sequence[int]) -> list[HeldSeat]:
    """Let jobs run one after the other in the seats; return those that run when the last begins."""
    seats = [(0.0, 0.0, 1)] * NUM_SEATS
    heapq.heapify(seats)
    now_s = 0.0
    for length in lengths:
        now_s = seats[0][0]
        heapq.heapreplace(seats, (now_s + length / TOKENS_PER_S, now_s, length))
    return [HeldSeat(now_s - began_s, length) for _, began_s, length in seats]


def _begun_s(free_at_s: list[float], lengths: Sequence[int]) -> float:
    """Return when the last of waiting jobs begins, of which every length is known."""
    heapq.heapify(free_at_s)
    at_s = 0.0
    for length in lengths:
        at_s = free_at_s[0]
        heapq.heapreplace(free_at_s, at_s + length / TOKENS_PER_S)
    return at_s
