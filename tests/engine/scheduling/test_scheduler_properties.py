"""Random load on the scheduler: pages add up after every step, tokens arrive once and in order."""

from __future__ import annotations

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
    from tokenbus.engine.scheduling.plan import StepPlan

PAGE_SIZE = 4
EOS = 9


def next_token(token_ids: list[int], choice: int) -> int:
    """Stand in for the model: a function of everything before, so a lost token shows."""
    state = choice
    for token_id in token_ids:
        state = (state * 31 + token_id + 7) % 1009
    return state % 10


class EngineModel(RuleBasedStateMachine):
    """Drives the scheduler as the core does, one step ahead, and keeps what was delivered."""

    num_steps: ClassVar = 0
    num_preemptions: ClassVar = 0
    num_regroupings: ClassVar = 0

    def __init__(self) -> None:
        """Start with an empty pool of a size that forces preemption."""
        super().__init__()
        self.pool = PagePool(24, PAGE_SIZE)
        self.scheduler = Scheduler(self.pool, ChunkSizer(16, None), max_num_seqs=6)
        self.content: dict[int, list[int]] = {}
        self.delivered: dict[Sequence, list[int]] = {}
        self.requests: dict[int, list[Sequence]] = {}
        self.inflight: list[tuple[Sequence, list[int], int]] = []
        self.next_id = 0
        self.grouping = BatchGrouping(PAGE_SIZE, lambda rows, pages: rows > 1 and pages > 0)
        self.runs: list[SharedRun] = []

    @initialize(optimistic=st.booleans())
    def choose_admission(self, optimistic: bool) -> None:
        """Half of the runs expect one token per output, so that pages run out all the time."""
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

    @rule(count=st.integers(1, 8))
    def steps(self, count: int) -> None:
        """The engine runs."""
        for _ in range(count):
            self.one_step()

    def one_step(self) -> None:
        """Launch a step, then read back the previous one."""
        EngineModel.num_steps += 1
        plan = self.scheduler.schedule()
        EngineModel.num_preemptions += len(plan.preempted)
        launched = self.launch(plan)
        results, self.inflight = self.inflight, launched
        for seq, known, token_id in results:
            assert known == list(seq.token_ids) or seq.state is SequenceState.FINISHED
            if EngineModel.num_steps % 2 and seq.state is not SequenceState.FINISHED:
                self.scheduler.complete_one(seq, token_id)
                kept = [token_id]
            else:
                kept, _ = self.scheduler.complete(seq, [token_id])
            self.delivered[seq].extend(kept)
        self.check_demand()

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
            total += max(0, self.pool.pages_for(seq.length + 1) - found)
            total += demand._to_come(seq, estimator)
        assert demand.of_running(scheduler.running, estimator) == total

    def launch(self, plan: StepPlan) -> list[tuple[Sequence, list[int], int]]:
        """Check that a step reads only what was computed, and sample."""
        unread = {id(seq): token_id for seq, _, token_id in self.inflight}
        for chunk in plan.prefill:
            self.write(chunk.seq, list(chunk.seq.token_ids), chunk.start, chunk.end)
        results = []
        for seq in plan.sampled():
            known = list(seq.token_ids)
            tokens = known + ([unread[id(seq)]] if id(seq) in unread else [])
            if seq in plan.decode:
                self.write(seq, tokens, len(tokens) - 1, len(tokens))
            self.read(seq, tokens)
            token_id = next_token(tokens, seq.choice)
            results.append((seq, tokens, token_id))
        self.read_shared(plan)
        return results

    def read_shared(self, plan: StepPlan) -> None:
        """Find the tokens of every row of a shared run in the pages of its first row."""
        runs = self.grouping.update(plan.decode)
        if runs is not None:
            EngineModel.num_regroupings += runs != self.runs
            self.runs = runs
        for run in self.runs:
            table = plan.decode[run.rows[0]].pages
            for row in run.rows:
                for position in range(run.first_page * PAGE_SIZE, run.end_page * PAGE_SIZE):
                    page = self.content[table[position // PAGE_SIZE]]
                    assert page[position % PAGE_SIZE] == plan.decode[row].token_ids[position]

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

    Groups of rows that share pages come and go meanwhile.
    """
    EngineModel.num_steps = EngineModel.num_preemptions = EngineModel.num_regroupings = 0
    run_state_machine_as_test(
        EngineModel,
        settings=settings(
            max_examples=160,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert EngineModel.num_steps >= 2000
    assert EngineModel.num_preemptions >= 20
    assert EngineModel.num_regroupings >= 200
