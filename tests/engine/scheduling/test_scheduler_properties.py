"""Random load on the scheduler: pages add up after every step, tokens arrive once and in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from models.scheduler_bench import Optimist

from tokenbus.engine.scheduling.chunk_sizer import ChunkSizer
from tokenbus.engine.scheduling.page_pool import PagePool
from tokenbus.engine.scheduling.prefix_grouping import BatchGrouping, SharedRun
from tokenbus.engine.scheduling.scheduler import Scheduler
from tokenbus.engine.scheduling.sequence import Sequence, SequenceState
from tokenbus.engine.types import FinishReason, Request, SamplingParams

if TYPE_CHECKING:
    from random import Random

    from tokenbus.engine.scheduling.plan import StepPlan

PAGE_SIZE = 4
EOS = 9
MOST_DRAFTED = 6


def next_token(token_ids: list[int], choice: int) -> int:
    """Stand in for the model: a function of everything before, so a lost token shows."""
    state = choice
    for token_id in token_ids:
        state = (state * 31 + token_id + 7) % 1009
    return state % 10


@dataclass(frozen=True)
class Sampled:
    """What a step brings of a sequence: new tokens behind those it was launched with."""

    seq: Sequence
    before: list[int]
    new: list[int]


class EngineModel(RuleBasedStateMachine):
    """Drives the scheduler as the engine does, one step ahead, and keeps what was delivered.

    Chance drafts up to `most_drafted` tokens behind what sequences are known to say, right up to
    some place: a step computes them all and brings those which are right, and one more.
    """

    num_steps: ClassVar = 0
    num_preemptions: ClassVar = 0
    num_regroupings: ClassVar = 0
    num_long_steps: ClassVar = 0
    num_cut_steps: ClassVar = 0
    num_held: ClassVar = 0

    def __init__(self) -> None:
        """Start with an empty pool of a size that forces preemption."""
        super().__init__()
        self.set_up(0)
        self.content: dict[int, list[int]] = {}
        self.delivered: dict[Sequence, list[int]] = {}
        self.requests: dict[int, list[Sequence]] = {}
        self.inflight: list[Sampled] = []
        self.next_id = 0
        self.grouping = BatchGrouping(PAGE_SIZE, lambda rows, pages: rows > 1 and pages > 0)
        self.runs: list[SharedRun] = []

    def set_up(self, most_drafted: int) -> None:
        """Make a pool and a scheduler, for drafts of at most so many tokens a sequence."""
        self.most_drafted = most_drafted
        self.pool = PagePool(19, PAGE_SIZE)
        self.scheduler = Scheduler(self.pool, ChunkSizer(16, None), max_num_seqs=6)

    @initialize(
        optimistic=st.booleans(),
        most_drafted=st.integers(0, MOST_DRAFTED),
        chance=st.randoms(use_true_random=False),
    )
    def choose(self, optimistic: bool, most_drafted: int, chance: Random) -> None:
        """Half of the runs expect one token per output, so that pages run out all the time."""
        self.set_up(most_drafted)
        self.chance = chance
        if optimistic:
            self.scheduler.estimator = Optimist()

    @rule(
        prompt=st.lists(st.integers(0, 2), min_size=1, max_size=30),
        max_tokens=st.integers(1, 30),
        priority=st.integers(0, 2),
        n=st.integers(1, 3),
        salt=st.sampled_from(["a", "b"]),
        ignore_eos=st.booleans(),
    )
    def add(
        self, prompt: list[int], max_tokens: int, priority: int, n: int, salt: str, ignore_eos: bool
    ) -> None:
        """A job arrives."""
        params = SamplingParams(n=n, max_tokens=max_tokens, ignore_eos=ignore_eos)
        request = Request(self.next_id, tuple(prompt), params, priority, salt)
        seqs = [Sequence(request, choice, self.next_id, (EOS,)) for choice in range(n)]
        self.requests[self.next_id] = seqs
        self.next_id += 1
        for seq in seqs:
            self.delivered[seq] = []
        self.scheduler.add(seqs)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        """A user cancels."""
        request_id = data.draw(st.sampled_from(sorted(self.requests)))
        for seq in self.requests.pop(request_id):
            if seq.state is not SequenceState.FINISHED:
                self.scheduler.remove(seq, FinishReason.ABORTED)

    @rule()
    def reset_cache(self) -> None:
        """The cache is reset: refused while pages are held, complete otherwise."""
        held = self.pool.num_available != self.pool.num_usable
        assert self.pool.reset_prefixes() is not held
        if not held:
            assert len(self.pool.prefixes) == 0

    @rule(count=st.integers(1, 4))
    def steps(self, count: int) -> None:
        """The engine runs."""
        for _ in range(count):
            self.one_step()

    def one_step(self) -> None:
        """Launch a step, then read back the previous one."""
        EngineModel.num_steps += 1
        plan = self.scheduler.schedule(self.drafts())
        EngineModel.num_preemptions += len(plan.preempted)
        launched = self.launch(plan)
        results, self.inflight = self.inflight, launched
        for result in results:
            seq = result.seq
            # What the step ahead sampled of a sequence that has ended is nobody's.
            if seq.state is SequenceState.FINISHED:
                continue
            assert result.before == list(seq.token_ids)
            EngineModel.num_long_steps += len(result.new) > 1
            end = self.scheduler.complete(seq, tuple(result.new))
            kept = result.new if end is None else result.new[: end.num_kept]
            EngineModel.num_cut_steps += kept != result.new
            self.delivered[seq].extend(kept)
            assert list(seq.token_ids) == result.before + kept
            assert seq.finish_reason is (None if end is None else end.reason)
        self.check_demand()
        self.check_progress()

    def check_progress(self) -> None:
        """What is not in flight is exact: all but the newest token of a decoding sequence."""
        for seq in self.scheduler.running:
            if seq.decoding and not seq.num_inflight:
                assert seq.num_computed == len(seq.token_ids) - 1
            assert len(seq.pages) * PAGE_SIZE >= seq.num_computed
            assert seq.num_registered * PAGE_SIZE <= min(seq.num_computed, len(seq.token_ids))

    def check_demand(self) -> None:
        """What all running sequences will ask for is what each of them will, one by one."""
        scheduler = self.scheduler
        demand, estimator = scheduler._demand, scheduler.estimator
        total = 0
        for seq in scheduler.running:
            found = len(seq.pages)
            if seq.leader is not None:
                held, _, claimed = scheduler.prefill.count_hits(seq)
                found = max(found, held) + claimed
            wanted = self.pool.pages_for(demand._next_length(seq))
            total += max(0, wanted + demand._to_come(seq, estimator) - found)
        assert demand.of_running(scheduler.running, estimator) == total

    def drafts(self) -> dict[Sequence, list[int]] | None:
        """Draft for some of the sequences that say something, also for those in flight."""
        if not self.most_drafted:
            return None
        drafts = {}
        for seq in self.scheduler.running:
            if seq.draft or not seq.num_output or self.chance.random() < 0.2:
                continue
            known = list(seq.token_ids)
            draft: list[int] = []
            for _ in range(self.chance.randint(1, self.most_drafted)):
                draft.append(next_token(known + draft, seq.choice))
            if self.chance.random() < 0.4:
                draft[self.chance.randrange(len(draft))] += 10
            drafts[seq] = draft
            EngineModel.num_held += bool(seq.num_inflight)
        return drafts

    def launch(self, plan: StepPlan) -> list[Sampled]:
        """Check that a step reads only what was computed, and sample."""
        unread = {id(result.seq): result.new for result in self.inflight}
        for chunk in plan.prefill:
            inputs = [*chunk.seq.token_ids[: chunk.start], *chunk.token_ids()]
            self.write(chunk.seq, inputs, chunk.start, chunk.length)
        results = []
        for chunk in plan.drafted():
            seq, before = chunk.seq, list(chunk.seq.token_ids)
            assert id(seq) not in unread
            new = [next_token(before, seq.choice)]
            while len(new) <= len(chunk.draft) and new[-1] == chunk.draft[len(new) - 1]:
                new.append(next_token(before + new, seq.choice))
            self.read(seq, before + new[:-1])
            results.append(Sampled(seq, before, new))
        for seq in plan.sampled():
            tokens = list(seq.token_ids) + unread.get(id(seq), [])
            if seq in plan.decode:
                self.write(seq, tokens, len(tokens) - 1, len(tokens))
            self.read(seq, tokens)
            results.append(Sampled(seq, tokens, [next_token(tokens, seq.choice)]))
        self.read_shared(plan)
        return results

    def read_shared(self, plan: StepPlan) -> None:
        """Find the tokens of every row of a shared run in the pages of its first row.

        Each row has a token of its own behind the run.
        """
        answers = [chunk for chunk in plan.prefill if chunk.is_answer]
        assert answers == plan.prefill[len(plan.prefill) - len(answers) :]
        runs = self.grouping.runs_of(plan.decode, answers)
        EngineModel.num_regroupings += runs != self.runs
        self.runs = runs
        rows = [(chunk.seq, chunk.start) for chunk in answers for _ in range(chunk.num_tokens)]
        rows += ((seq, seq.num_computed - 1) for seq in plan.decode)
        for run in runs:
            table = rows[run.rows[0]][0].pages
            for row in run.rows:
                seq, start = rows[row]
                assert run.end_page * PAGE_SIZE <= start
                for position in range(run.first_page * PAGE_SIZE, run.end_page * PAGE_SIZE):
                    page = self.content[table[position // PAGE_SIZE]]
                    assert page[position % PAGE_SIZE] == seq.token_ids[position]

    def write(self, seq: Sequence, tokens: list[int], start: int, end: int) -> None:
        """Store tokens as a kernel stores keys, never on the scratch page."""
        for position in range(start, end):
            page_id = seq.pages[position // PAGE_SIZE]
            assert page_id != 0
            page = self.content.setdefault(page_id, [-1] * PAGE_SIZE)
            page[position % PAGE_SIZE] = tokens[position]

    def read(self, seq: Sequence, tokens: list[int]) -> None:
        """Find every token of the context in the pages of its sequence."""
        for position, token_id in enumerate(tokens):
            page = self.content[seq.pages[position // PAGE_SIZE]]
            assert page[position % PAGE_SIZE] == token_id

    @invariant()
    def pages_add_up(self) -> None:
        """Free + evictable + held is the total, reference counts are exact."""
        self.scheduler.check_integrity()

    def teardown(self) -> None:
        """Run dry: every job ends, tokens are those of an undisturbed run, all pages are free."""
        for _ in range(5000):
            if not (self.scheduler.running or self.scheduler.waiting or self.inflight):
                break
            self.one_step()
        assert not self.scheduler.running
        assert not self.scheduler.waiting
        assert self.pool.num_available == self.pool.num_usable
        for seqs in self.requests.values():
            for seq in seqs:
                tokens = list(seq.request.prompt_ids)
                for token_id in self.delivered[seq]:
                    assert token_id == next_token(tokens, seq.choice)
                    tokens.append(token_id)
                assert seq.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
                if seq.finish_reason is FinishReason.LENGTH:
                    assert len(self.delivered[seq]) == seq.request.params.max_tokens


def test_random_load_loses_no_page_and_no_token() -> None:
    """At least 2,000 steps of random adds, aborts, forks, preemptions and cache resets.

    Sequences with drafts get up to seven tokens a step, and nothing past an end is delivered.
    Groups of rows that share pages come and go meanwhile.
    """
    enough = {
        "num_steps": 1000,
        "num_preemptions": 10,
        "num_regroupings": 100,
        "num_long_steps": 250,
        "num_cut_steps": 5,
        "num_held": 150,
    }
    for name in enough:
        setattr(EngineModel, name, 0)

    def missing() -> dict[str, int]:
        counts = {name: getattr(EngineModel, name) for name in enough}
        return {name: count for name, count in counts.items() if count < enough[name]}

    # What is drawn is drawn anew each time: one round in some falls short of a count.
    for _ in range(4):
        run_state_machine_as_test(
            EngineModel,
            settings=settings(
                max_examples=80,
                stateful_step_count=50,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
        if not missing():
            break
    assert missing() == {}
