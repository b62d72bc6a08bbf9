"""Scheduling: shares of a step, ends, preemption, admission, siblings of a prefix."""

from __future__ import annotations

from models.scheduler_bench import EOS, Bench, Optimist

from tokenbus.engine.scheduling.chunk_sizer import ChunkSizer
from tokenbus.engine.scheduling.plan import PrefillChunk
from tokenbus.engine.scheduling.sequence import SequenceEnd, SequenceState
from tokenbus.engine.types import FinishReason


def test_step_budget_is_split_fairly_over_long_prompts() -> None:
    """Three 800-token prompts take equal parts of a 1,024-token step, not first come first served.

    Equal parts let every prompt of a burst start; a cap per prompt is not needed for that.
    """
    bench = Bench()
    seqs = [bench.add(800) for _ in range(3)]
    shares = bench.step()
    assert sum(shares.values()) == 1024
    assert max(shares.values()) - min(shares.values()) <= 1
    assert sum(bench.step().values()) == 1024
    assert sum(bench.step().values()) == 2400 - 2048
    assert all(seq.decoding for seq in seqs)


def test_jobs_of_a_dead_worker_get_the_whole_step_where_nobody_streams() -> None:
    """Nobody is disturbed, so all of them are computed at once."""
    bench = Bench()
    crowd = [bench.add(60, resumed=tuple(range(40))) for _ in range(3)]
    assert sum(bench.step().values()) == 300
    assert all(seq.decoding for seq in crowd)


def test_long_prompt_at_the_head_is_never_skipped() -> None:
    """Short prompts behind a long one do not stop it from making progress in every step."""
    bench = Bench(budget=64)
    long = bench.add(600, priority=0)
    done = 0
    while not long.decoding:
        bench.add(8)
        done += bench.step()[long]
    assert done == 600


def test_end_of_sequence_token_ends_one_and_the_rest_goes_on() -> None:
    """An EOS ends its sequence with `stop` in the same step and nobody else."""
    bench = Bench()
    one, two = bench.add(5), bench.add(5)
    bench.step({one: EOS})
    assert one.finish_reason is FinishReason.STOP
    assert two.state is SequenceState.RUNNING
    assert one.token_ids[-1] == EOS
    assert bench.scheduler.running == [two]


def test_ignore_eos_goes_on() -> None:
    """With ignore_eos the token is output like any other."""
    bench = Bench()
    seq = bench.add(5, ignore_eos=True, max_tokens=3)
    for _ in range(3):
        bench.step({seq: EOS})
    assert list(seq.token_ids[5:]) == [EOS] * 3
    assert seq.finish_reason is FinishReason.LENGTH


def test_tokens_after_a_stop_token_are_dropped() -> None:
    """Of a step's [10, 42, 12] with stop id 42, two tokens are kept."""
    bench = Bench()
    seq = bench.add(5, stop_token_ids=(42,))
    bench.step()
    bench.scheduler.schedule({seq: (10, 42)})
    assert bench.scheduler.complete(seq, (10, 42, 12)) == SequenceEnd(FinishReason.STOP, 2)
    assert list(seq.token_ids[5:]) == [7, 10, 42]
    assert bench.pool.num_available == bench.pool.num_usable


def test_draft_is_a_chunk_of_the_last_token_and_waits_for_nobody() -> None:
    """A drafted sequence is computed from its last token on; the others decode as before."""
    bench = Bench()
    one, two = bench.add(5), bench.add(5)
    bench.step()
    plan = bench.scheduler.schedule({one: (10, 11)})
    assert plan.prefill == [PrefillChunk(one, 5, 6, samples=True, draft=(10, 11))]
    assert (plan.decode, plan.sampled(), plan.num_prefill_tokens) == ([two], [two], 0)
    assert list(plan.prefill[0].token_ids()) == [7, 10, 11]
    assert (plan.prefill[0].num_tokens, plan.prefill[0].length) == (3, 8)
    assert (one.num_computed, one.num_inflight) == (8, 3)


def test_draft_is_cut_to_max_tokens() -> None:
    """Of a draft that goes on past the end, no more is computed than can be brought."""
    bench = Bench()
    seq = bench.add(5, max_tokens=4)
    bench.step()
    plan = bench.scheduler.schedule({seq: (10, 11, 12, 13)})
    assert plan.prefill[0].draft == (10, 11)
    assert bench.scheduler.complete(seq, (10, 11, 12)) == SequenceEnd(FinishReason.LENGTH, 3)
    bench.scheduler.check_integrity()


def test_several_tokens_of_a_step_count_what_was_computed_for_them() -> None:
    """Of five tokens that a step may bring it brings two: the inputs of two count as computed."""
    bench = Bench(page_size=4)
    seq = bench.add(5)
    bench.step()
    bench.scheduler.schedule({seq: (8, 1, 1, 1)})
    assert seq.num_computed == 10
    assert bench.scheduler.complete(seq, (8, 9)) is None
    assert (len(seq.token_ids), seq.num_computed, seq.num_inflight) == (8, 7, 0)
    assert len(seq.pages) == 3
    assert bench.scheduler.schedule().decode == [seq]
    assert (len(seq.pages), seq.num_computed) == (3, 8)


def test_sequence_with_a_draft_sits_out_until_its_token_is_read_back() -> None:
    """With a token in flight a draft holds it back; with a draft in flight it waits as well."""
    bench = Bench()
    seq, other = bench.add(5), bench.add(5)
    bench.step()
    assert bench.scheduler.schedule().decode == [seq, other]
    held = bench.scheduler.schedule({seq: (10,)})
    assert (held.decode, held.prefill) == ([other], [])
    for each in (seq, other):
        bench.scheduler.complete(each, (8,))
    drafted = bench.scheduler.schedule({seq: (10,)})
    assert [chunk.seq for chunk in drafted.prefill] == [seq]
    bench.scheduler.complete(other, (8,))
    assert bench.scheduler.schedule().decode == [other]
    bench.scheduler.complete(seq, (10, 11))
    bench.scheduler.complete(other, (8,))
    # Without a draft it goes ahead again.
    assert bench.scheduler.schedule().decode == [seq, other]
    assert bench.scheduler.schedule().decode == [seq, other]
    assert seq.num_inflight == 2


def test_draft_takes_only_pages_that_nobody_wants() -> None:
    """The last page goes to who needs it for its next token; drafts are cut, nobody preempted."""
    bench = Bench(num_pages=5, page_size=4)
    bench.scheduler.estimator = Optimist()
    one, two = bench.add(5), bench.add(7)
    bench.step()
    plan = bench.scheduler.schedule({one: (1, 1, 1, 1, 1), two: (1, 1, 1)})
    assert [chunk.draft for chunk in plan.prefill] == [(1, 1)]
    assert plan.prefill[0].seq is one
    assert plan.decode == [two]
    assert not plan.preempted
    bench.scheduler.check_integrity()


def test_draft_goes_behind_forced_tokens_in_their_chunk() -> None:
    """What a grammar has forced is computed with the draft behind it, in one chunk."""
    bench = Bench()
    seq = bench.add(5)
    bench.step()
    bench.scheduler.append_forced(seq, (20, 21))
    plan = bench.scheduler.schedule({seq: (10, 11)})
    assert plan.prefill == [PrefillChunk(seq, 5, 8, samples=True, draft=(10, 11))]
    assert bench.scheduler.complete(seq, (10, 12)) is None
    assert (len(seq.token_ids), seq.num_computed, seq.decoding) == (10, 9, True)


def test_tokens_of_a_step_that_are_taken_one_by_one_count_alike() -> None:
    """Each further one says that the token before it was computed with the draft."""
    bench = Bench(page_size=4)
    seq = bench.add(5)
    bench.step()
    bench.scheduler.schedule({seq: (8, 9, 10)})
    assert bench.scheduler.complete(seq, (8,)) is None
    assert (seq.num_computed, len(seq.token_ids)) == (6, 7)
    assert bench.scheduler.complete_right(seq, 9) is None
    assert bench.scheduler.complete_right(seq, 4) is None
    assert (seq.num_computed, len(seq.token_ids), seq.num_registered) == (8, 9, 2)


def test_page_that_is_filled_in_the_middle_of_a_step_is_found_by_the_next_turn() -> None:
    """A page is full before the stop among a step's tokens: it has its hash when they end."""
    bench = Bench(page_size=4)
    seq = bench.add(5, stop_token_ids=(42,))
    bench.step()
    bench.scheduler.schedule({seq: (10, 11, 12, 42)})
    bench.scheduler.complete(seq, (10, 11, 12, 42, 13))
    again = bench.add(0, prompt=list(seq.token_ids))
    assert bench.step() == {again: 10 - 8}


def test_max_tokens_wins_over_min_tokens() -> None:
    """A stop id before min_tokens is output, but max_tokens ends the sequence all the same."""
    bench = Bench()
    seq = bench.add(5, max_tokens=3, min_tokens=3, stop_token_ids=(42,))
    bench.step({seq: 42})
    bench.step({seq: 42})
    assert seq.state is SequenceState.RUNNING
    bench.step({seq: 7})
    assert seq.finish_reason is FinishReason.LENGTH


def test_preempted_sequence_keeps_its_token_in_flight() -> None:
    """A token sampled before the preemption and read back after it is not lost."""
    bench = Bench(num_pages=11)
    bench.scheduler.estimator = Optimist()
    one, two = bench.add(79), bench.add(79)
    first = bench.scheduler.schedule()
    assert first.sampled() == [one, two]
    second = bench.scheduler.schedule()  # one step ahead: both grow to the last page
    for seq in first.sampled():
        bench.scheduler.complete(seq, (41,))
    third = bench.scheduler.schedule()  # one needs a sixth page
    assert third.preempted == [two]
    for seq in second.sampled():
        bench.scheduler.complete(seq, (42,))
    assert two.state is SequenceState.WAITING
    assert list(two.token_ids[79:]) == [41, 42]
    bench.scheduler.check_integrity()


def test_preempted_sequence_keeps_all_tokens_of_the_step_in_flight() -> None:
    """The tokens of a step come back after the preemption: all are kept, none is computed."""
    bench = Bench(num_pages=11)
    bench.scheduler.estimator = Optimist()
    bench.add(79)
    two = bench.add(76)
    bench.step()
    bench.scheduler.schedule({two: (41, 43)})
    third = bench.scheduler.schedule()  # the other needs a sixth page
    assert third.preempted == [two]
    bench.scheduler.complete(two, (41, 42))
    assert (two.state, two.num_computed, two.num_inflight) == (SequenceState.WAITING, 0, 0)
    assert list(two.token_ids[76:]) == [7, 41, 42]
    bench.scheduler.check_integrity()


def test_lowest_priority_then_newest_is_preempted() -> None:
    """When pages run out, high priority runs on; between equals the newest goes."""
    for priorities, victim in (((0, 1), 1), ((1, 0), 0), ((1, 1), 1)):
        bench = Bench(num_pages=11)
        bench.scheduler.estimator = Optimist()
        seqs = [bench.add(80, priority=priority) for priority in priorities[:1]]
        bench.scheduler.schedule()
        bench.scheduler.complete(seqs[0], (7,))
        seqs.append(bench.add(60, priority=priorities[1]))
        bench.step()
        for _ in range(40):
            if bench.scheduler.preemptions_total:
                break
            bench.step()
        assert bench.scheduler.preemptions_total == 1
        assert seqs[victim].state is SequenceState.WAITING
        assert seqs[1 - victim].state is SequenceState.RUNNING


def test_preempted_sequence_resumes_with_all_its_tokens() -> None:
    """30 prompt and 2 generated tokens are prefilled again as 32, and generation goes on."""
    bench = Bench(num_pages=4)
    bench.scheduler.estimator = Optimist()
    high, low = bench.add(14, priority=0), bench.add(14, priority=1)
    for _ in range(40):
        if low.state is SequenceState.WAITING and low.was_admitted:
            break
        bench.step()
    known = len(low.token_ids)
    assert known > 14
    bench.scheduler.remove(high, FinishReason.ABORTED)
    plan = bench.scheduler.schedule()
    assert plan.prefill[-1].seq is low
    assert plan.prefill[-1].end == known
    assert plan.prefill[-1].samples


def test_earliest_arrival_runs_first_among_equals() -> None:
    """With one row, jobs run in the order of their arrival."""
    bench = Bench(max_num_seqs=1)
    seqs = [bench.add(4, max_tokens=1) for _ in range(3)]
    ends = []
    for _ in range(3):
        bench.step()
        ends.append([seq.finish_reason is not None for seq in seqs])
    assert ends == [[True, False, False], [True, True, False], [True, True, True]]


def test_rows_cap_admission() -> None:
    """Of ten sequences and three rows, three run and seven wait."""
    bench = Bench(max_num_seqs=3)
    for _ in range(10):
        bench.add(4)
    bench.step()
    assert len(bench.scheduler.running) == 3
    assert len(bench.scheduler.waiting) == 7


def test_equal_prompts_of_one_step_are_computed_once() -> None:
    """Of two equal prompts in the same step, the second one computes its last page only."""
    bench = Bench()
    prompt = list(range(100))
    one, two = bench.add(0, prompt=prompt), bench.add(0, prompt=prompt)
    assert bench.step() == {one: 100, two: 100 - 96}
    assert one.pages[:6] == two.pages[:6]
    assert one.pages[6] != two.pages[6]


def test_sibling_waits_for_its_leader_and_leads_on_when_it_goes() -> None:
    """While a prefix is being computed nobody computes it again; a sibling takes over its rest."""
    bench = Bench(budget=32)
    prompt = list(range(100))
    leader, sibling = bench.add(0, prompt=prompt), bench.add(0, prompt=prompt)
    assert bench.step() == {leader: 32}
    assert bench.step() == {leader: 32}
    assert sibling.leader is leader
    assert sibling.pages == leader.pages[:2]
    bench.scheduler.remove(leader, FinishReason.ABORTED)
    assert bench.step() == {sibling: 32}
    assert bench.step() == {sibling: 4}
    assert sibling.decoding


def test_sibling_is_promised_only_what_its_leader_does_not_compute_for_it() -> None:
    """A leader of eight pages and two siblings of two more each run in twelve, from the start."""
    bench = Bench(num_pages=13, budget=32)
    for _ in range(2):
        bench.add(0, prompt=list(range(100)), max_tokens=16)
    bench.step()
    late = bench.add(0, prompt=list(range(100)), max_tokens=16)
    bench.step()
    assert late.state is SequenceState.RUNNING
    while bench.scheduler.running:
        bench.step()
    assert bench.scheduler.preemptions_total == 0


def test_page_that_the_token_in_flight_fills_is_promised_once() -> None:
    """At the end of a page a running sequence has two pages to come of four, and leaves the rest.

    Of seven pages it holds two then, so that a newcomer of three is admitted in the same step.
    """
    bench = Bench(num_pages=8)
    running = bench.add(16, max_tokens=48)
    while len(running.token_ids) < 31:
        bench.step()
    late = bench.add(16, max_tokens=32)
    bench.step()
    assert late.state is SequenceState.RUNNING


def test_second_turn_hits_the_pages_of_the_first() -> None:
    """Prompt plus answer of turn one, sent again in turn two, is not computed again."""
    bench = Bench()
    first = bench.add(40, max_tokens=30)
    while first.state is not SequenceState.FINISHED:
        bench.step()
    second = bench.add(0, prompt=[*first.token_ids, 5, 6, 7])
    # 70 tokens are known, the last of them was never an input: four full pages.
    assert bench.step() == {second: 73 - 64}


def test_admission_learns_how_long_outputs_get() -> None:
    """At first max_tokens is reserved; after ended jobs of the lane the estimate lets more in."""
    bench = Bench(num_pages=41, page_size=16)
    for _ in range(3):
        bench.add(16, max_tokens=300)
    bench.step()
    assert len(bench.scheduler.running) == 2
    for _ in range(40):
        bench.scheduler.estimator.observe("", 20)
    bench.step()
    assert len(bench.scheduler.running) == 3


def test_prompt_that_fits_no_more_waits_for_pages_not_for_ever() -> None:
    """A job that does not fit beside others runs when they end."""
    bench = Bench(num_pages=9)
    one = bench.add(100, max_tokens=20)
    two = bench.add(100, max_tokens=20)
    bench.step()
    assert two.state is SequenceState.WAITING
    while one.state is not SequenceState.FINISHED:
        bench.step()
    bench.step()
    assert two in bench.scheduler.running


def test_chunks_shrink_to_the_time_target_while_someone_streams() -> None:
    """Having seen 1 ms per token, a 50 ms target beside 10 ms of decode takes 40 tokens."""
    sizer = ChunkSizer(2048, 0.050)
    assert sizer.budget(streaming=False) == 2048
    for _ in range(50):
        sizer.observe(0, 8, 0.010)
        chunk = sizer.budget(streaming=True)
        sizer.observe(chunk, 8, 0.010 + chunk * 0.001)
    assert 30 <= sizer.budget(streaming=True) <= 48
    for _ in range(100):
        chunk = sizer.budget(streaming=True)
        sizer.observe(chunk, 8, 0.010 + chunk * 0.0001)
    assert 300 <= sizer.budget(streaming=True) <= 512
