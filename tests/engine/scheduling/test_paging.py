"""When the scheduler takes pages, and how many."""

from __future__ import annotations

from models.scheduler_bench import Bench

from tokenbus.engine.scheduling.sequence import SequenceState
from tokenbus.engine.types import FinishReason


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
