"""When the scheduler takes pages, and how many."""

from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any

from models.scheduler_bench import Bench

from tokenbus.engine.scheduling import sequence
from tokenbus.engine.scheduling.prefix_cache import PrefixCache, chain_hash
from tokenbus.engine.scheduling.sequence import Sequence, SequenceState
from tokenbus.engine.types import FinishReason, Request, SamplingParams

if TYPE_CHECKING:
    import pytest


def test_decode_takes_one_page_when_the_last_one_is_full() -> None:
    """Tokens that fit take nothing; the first that does not takes exactly one page."""
    bench = Bench(num_pages=11)
    seq = bench.add(7, max_tokens=40)
    bench.step()
    for length in range(8, 40):
        assert len(seq.token_ids) == length
        free = bench.pool.num_free
        bench.step()
        # This step wrote the token at index `length` - 1.
        assert len(seq.pages) == -(-length // 16)
        assert free - bench.pool.num_free == (1 if length in {17, 33} else 0)


def test_without_a_prefix_cache_nothing_is_shared() -> None:
    """Equal prompts one after the other are computed in full, and no page keeps a hash."""
    bench = Bench(prefix_cache=False)
    prompt = list(range(100))
    for _ in range(2):
        seq = bench.add(0, prompt=prompt, max_tokens=1)
        assert bench.step() == {seq: 100}
        assert seq.finish_reason is FinishReason.LENGTH
    assert len(bench.pool.prefixes) == 0
    assert bench.pool.num_free == 1000


def test_prompt_with_hits_that_does_not_fit_takes_none_of_them() -> None:
    """Six cached pages are left where they are while there is no room for the rest."""
    bench = Bench(num_pages=13)
    prompt = list(range(97))
    first = bench.add(0, prompt=prompt, max_tokens=1)
    bench.step()
    assert first.finish_reason is FinishReason.LENGTH
    cached = first.page_hashes(6, 16)[:6]
    assert all(bench.pool.lookup(page_hash) is not None for page_hash in cached)
    other = bench.add(80, max_tokens=80)
    bench.step()
    assert other.state is SequenceState.RUNNING
    late = bench.add(0, prompt=[*prompt[:96], *range(5000, 5040)], max_tokens=2)
    plan = bench.scheduler.schedule()
    assert late.state is SequenceState.WAITING
    assert late.pages == []
    assert late not in [chunk.seq for chunk in plan.prefill]
    assert bench.pool.num_evictable == 6
    assert [bench.pool.ref_count(page) for page in other.pages] == [1] * len(other.pages)
    bench.scheduler.check_integrity()


def test_choices_are_admitted_together_or_not_at_all() -> None:
    """Of three choices with two rows left none starts; with a third row all of them do."""
    bench = Bench(max_num_seqs=3)
    single = bench.add(4)
    bench.step()
    bench.add(4, n=3)
    bench.step()
    assert bench.scheduler.running == [single]
    assert len(bench.scheduler.waiting) == 3
    bench.scheduler.remove(single, FinishReason.ABORTED)
    bench.step()
    assert len(bench.scheduler.running) == 3


def test_prompts_without_a_hit_are_hashed_as_far_as_the_steps_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One page of each before they are planned, those of a step behind its launch."""
    hashed = 0

    def counted(*args: Any) -> bytes:
        nonlocal hashed
        hashed += 1
        return chain_hash(*args)

    monkeypatch.setattr(sequence, "chain_hash", counted)
    bench = Bench(budget=160)
    seqs = [bench.add(165, max_tokens=1) for _ in range(6)]
    bench.scheduler.schedule()
    assert len(bench.scheduler.running) == len(seqs) == hashed
    assert len(bench.pool.prefixes) == 0
    bench.scheduler.prefill.register_planned()
    num_full = sum(seq.num_computed // 16 for seq in seqs)
    assert len(bench.pool.prefixes) == num_full == 8
    # The next page is claimed by each that goes on.
    assert hashed <= num_full + len(seqs)


def test_sibling_counts_the_pages_that_its_leader_is_going_to_compute() -> None:
    """Right up to where their prompts differ, however far the leader has come."""
    bench = Bench(budget=64)
    leader = bench.add(0, prompt=list(range(160)))
    count = bench.scheduler.prefill.count_hits
    for common, num_alike in ((0, 0), (15, 0), (16, 1), (100, 6), (160, 9)):
        prompt = [*range(common), *range(9000, 9000 + 170 - common)]
        sibling = Sequence(Request(9, tuple(prompt), SamplingParams()), 0, 9, (2,))
        if not leader.pages:
            bench.scheduler.schedule()
        bench.scheduler.prefill.register_planned()
        num_computed = leader.num_computed // 16
        held = min(num_alike, num_computed)
        assert count(sibling) == (held, 0, num_alike - held)


def test_content_of_several_pages_is_found_until_the_last_is_forgotten() -> None:
    """Whichever of them goes first."""
    for order in permutations((4, 5, 6)):
        cache = PrefixCache()
        for page_id in (4, 5, 6):
            cache.insert(page_id, b"a")
        cache.insert(7, b"b")
        left = [4, 5, 6]
        for page_id in order:
            assert cache.lookup(b"a") in left
            cache.drop(page_id)
            left.remove(page_id)
        assert cache.lookup(b"a") is None
        assert b"a" not in cache
        assert (cache.lookup(b"b"), len(cache)) == (7, 1)


def test_prompts_fill_a_step_by_what_waits() -> None:
    """What the step has taken is waited for no more, and what awaits its grammar cannot begin."""
    bench = Bench(budget=100)
    bench.add(60)
    assert not bench.scheduler.fills_step()
    other = bench.add(40)
    assert bench.scheduler.fills_step()
    other.awaits_grammar = True
    assert not bench.scheduler.fills_step()
    other.awaits_grammar = False
    bench.step()
    assert not bench.scheduler.fills_step()


def test_prompts_that_find_no_row_fill_no_step() -> None:
    """However many wait, each that comes looks at no more than may begin."""
    bench = Bench(budget=100, max_num_seqs=1)
    bench.add(60)
    bench.add(60)
    assert not bench.scheduler.fills_step()
