"""How prompts split a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from models.scheduler_bench import Bench

from tokenbus.engine.scheduling.shares import choose_wishes, crowd_shares, fair_shares

if TYPE_CHECKING:
    from tokenbus.engine.scheduling.sequence import Sequence


def test_short_prompt_beside_a_long_one_is_done_in_the_same_step() -> None:
    """Ten tokens are met in full and the long prompt gets all the rest of the step.

    An even split would leave the rest of the short one's half unused.
    """
    assert fair_shares([5000, 10], 1024) == [1014, 10]
    assert fair_shares([5000], 1024) == [1024]
    assert fair_shares([3, 5000, 5000], 11) == [3, 4, 4]


def test_crowd_of_prompts_is_taken_first_come_first() -> None:
    """No more prompts share a step than can be met or have a quarter of it."""
    crowd = choose_wishes([100] * 500, 8192)
    assert crowd == list(range(82))
    assert choose_wishes([6000] * 40, 8192) == list(range(4))
    assert choose_wishes([6000] * 40, 1 << 16) == list(range(16))
    assert choose_wishes([5000], 16) == [0]
    assert choose_wishes([], 64) == []


def test_long_prompts_leave_half_of_a_step_to_short_ones_behind_them() -> None:
    """Two of the long ones go on, and what is short is met in full."""
    chosen = choose_wishes([6000] * 40 + [30] * 20, 8192)
    assert chosen[:2] == [0, 1]
    assert set(range(40, 60)) <= set(chosen)
    # What the short ones leave goes to more of the long ones.
    assert len(chosen) - 20 == 3


def test_no_prompt_is_cut_for_one_behind_it() -> None:
    """Prompts that fit are computed whole, one after the other; the last gets what is left.

    A prompt that is computed in parts reads what was computed of it from its pages, each time.
    """
    assert crowd_shares([2000] * 5, 8192) == [2000] * 4 + [192]
    assert crowd_shares([100] * 82, 8192) == [100] * 81 + [92]
    assert crowd_shares([6000] * 4, 8192) == [2048] * 4
    assert crowd_shares([6000, 6000, 30], 8192) == [4081, 4081, 30]
    assert crowd_shares([5000, 10], 1024) == [1014, 10]


def test_jobs_of_a_dead_worker_come_back_one_after_the_other_by_priority() -> None:
    """While somebody streams, refills lengthen a step by one decode step at most, best first.

    New prompts get what is left of the step, and the crowd is done in the order of its priority.
    """
    bench = Bench()
    sizer = bench.scheduler.sizer
    streaming = bench.add(10, max_tokens=500)
    bench.step()
    for _ in range(20):
        sizer.observe(0, 1, 0.010)
        sizer.observe(64, 1, 0.020)
    crowd = [
        bench.add(60, priority=priority, resumed=tuple(range(40)), max_tokens=500)
        for priority in (2, 1, 0)
    ]
    late: list[Sequence] = []
    fresh = bench.add(300, priority=2)
    steps = 0
    while not all(seq.decoding for seq in crowd):
        before = len(streaming.token_ids)
        shares = bench.step()
        assert sum(shares.get(seq, 0) for seq in crowd) <= 64
        assert len(streaming.token_ids) == before + 1
        late += [seq for seq in crowd if seq.decoding and seq not in late]
        steps += 1
    assert late == crowd[::-1]
    assert steps == 5  # 300 tokens, 64 a step
    assert fresh.decoding
