"""The scheduler plans the next step: decode first, then admission, then prompts.

The scheduler knows tokens and pages only: no tensors, no clock, no queue. `schedule` plans one
step and takes its pages at once; `complete` is told, sequence by sequence, what that step brought,
possibly after the next one was planned (one step in flight).

A step brings one token of a sequence, and of one with a draft as many as were right and one more.
Until it is read back the most it may bring is counted, for pages as for positions; `complete` puts
that right.

It is one file because all of it moves sequences between the same two lists, waiting and running.
"""

from __future__ import annotations

from bisect import insort
from itertools import islice
from operator import attrgetter
from typing import TYPE_CHECKING

from tokenbus.engine.sampling.plan import MAX_DRAFTED_ROWS
from tokenbus.engine.scheduling.output_estimator import OutputEstimator
from tokenbus.engine.scheduling.page_demand import PageDemand
from tokenbus.engine.scheduling.plan import PrefillChunk, StepPlan
from tokenbus.engine.scheduling.prefill import PrefillPlanner
from tokenbus.engine.scheduling.sequence import Sequence, SequenceEnd, SequenceState
from tokenbus.engine.types import FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from collections.abc import Sequence as Ids

    from tokenbus.engine.scheduling.chunk_sizer import ChunkSizer
    from tokenbus.engine.scheduling.page_pool import PagePool

    TokenIds = list[int] | tuple[int, ...]
    Drafts = Mapping[Sequence, Ids[int]]


_by_order = attrgetter("order")
_is_answer = attrgetter("is_answer")


def _insert(seqs: list[Sequence], seq: Sequence) -> None:
    """Put a sequence in its place; nearly every one is the last."""
    if not seqs or seqs[-1].order < seq.order:
        seqs.append(seq)
    else:
        insort(seqs, seq, key=_by_order)


class Scheduler:
    """Waiting and running sequences over one page pool.

    `running` and `waiting` are sorted best first: priority, then arrival. `on_release` is told each
    row that became free.
    """

    def __init__(
        self,
        pool: PagePool,
        sizer: ChunkSizer,
        *,
        max_num_seqs: int,
        prefix_cache: bool = True,
        on_release: Callable[[int], None] | None = None,
    ) -> None:
        self.pool = pool
        self.sizer = sizer
        self.estimator = OutputEstimator()
        self.prefill = PrefillPlanner(pool, prefix_cache=prefix_cache)
        self._demand = PageDemand(pool, self.prefill)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.preemptions_total = 0
        self.preempted_tokens_total = 0
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))
        self._max_num_seqs = max_num_seqs
        self._page_size = pool.page_size
        self._on_release = on_release

    def add(self, seqs: Iterable[Sequence]) -> None:
        """Queue the choices of one request."""
        for seq in seqs:
            _insert(self.waiting, seq)

    def fills_step(self) -> bool:
        """Tell whether what waits is, by its tokens, as much as a step may compute.

        Asked for each sequence that comes, so it looks at no more of them than there are rows for.
        """
        room = self.sizer.max_tokens
        for seq in islice(self.waiting, len(self._free_rows)):
            if not seq.awaits_grammar:
                room -= len(seq.token_ids)
            if room <= 0:
                return True
        return False

    def remove(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence in any state and free what it holds."""
        self.prefill.register_planned()
        (self.running if seq.state is SequenceState.RUNNING else self.waiting).remove(seq)
        seq.move_to(SequenceState.FINISHED)
        seq.finish_reason = reason
        self._release(seq)
        is_whole = reason in (FinishReason.STOP, FinishReason.LENGTH)
        if is_whole and seq.request.params.max_tokens:
            self.estimator.observe(seq.request.lane, seq.num_output)

    def schedule(self, drafts: Drafts | None = None) -> StepPlan:
        """Plan the next step and allocate its pages.

        Of sequences with a draft, those in flight sit the step out: behind a token that the host
        does not know, nobody can tell which of a draft's tokens were right.
        """
        plan = StepPlan()
        self.prefill.register_planned()
        for seq in drafts or ():
            seq.needs_tokens = True
        self._plan_decode(plan)
        self._admit(plan)
        self._plan_prefill(plan)
        if drafts:
            self._plan_drafts(plan, drafts)
        plan.prefill.sort(key=_is_answer)
        return plan

    def complete(self, seq: Sequence, token_ids: TokenIds) -> SequenceEnd | None:
        """Take the tokens, one or more, that a step brought of a live sequence.

        Returns: None if the sequence goes on, which keeps them all; else why it ended and how many
            tokens it kept. Those behind its end are dropped.
        """
        known = seq.token_ids
        before = len(known)
        if seq.num_inflight:
            seq.num_inflight -= 1
            if seq.needs_tokens:
                self._land(seq, len(token_ids))
        for token_id in token_ids:
            known.append(token_id)
            if token_id in seq.stop_token_ids or len(known) >= seq.max_length:
                reason = self._ends(seq, token_id)
                if len(known) > seq.max_length:
                    # None was asked for: the step was for the prompt alone.
                    known.pop()
                    reason = FinishReason.LENGTH
                if reason is not None:
                    self.remove(seq, reason)
                    return SequenceEnd(reason, len(known) - before)
            # Token by token: a page that is full before the end has its hash by then.
            fills_page = seq.num_computed >= (seq.num_registered + 1) * self._page_size
            if fills_page and seq.state is SequenceState.RUNNING:
                self.prefill.register_full_pages(seq)
        return None

    def complete_right(self, seq: Sequence, token_id: int) -> SequenceEnd | None:
        """Take a further token of a step, as `complete` does, where the one before was drafted."""
        seq.num_computed += 1
        return self.complete(seq, (token_id,))

    def append_forced(self, seq: Sequence, token_ids: TokenIds) -> SequenceEnd | None:
        """Extend a sequence by tokens that its grammar leaves no choice about, as `complete` does.

        No step is in flight. The tokens go in as a prefill chunk, so the sequence is not decoding
        until that is computed.
        """
        end = self.complete(seq, token_ids)
        if end is None:
            seq.decoding = False
        return end

    def hold_forced(self, seq: Sequence, token_ids: TokenIds, *, is_last: bool) -> None:
        """Extend a sequence as `append_forced` does, by tokens that wait to be scored.

        So does an end among them, or behind them if the grammar takes no more (`is_last`).
        """
        seq.held_end = FinishReason.STOP if is_last else None
        for token_id in token_ids:
            seq.token_ids.append(token_id)
            seq.num_unscored += 1
            reason = self._ends(seq, token_id)
            if reason is not None:
                seq.held_end = reason
                break
        seq.decoding = False

    def check_integrity(self) -> None:
        """Check pages, rows and claims against the live sequences (raises IntegrityError)."""
        self.pool.check_integrity([seq.pages for seq in self.running + self.waiting])

    @property
    def max_num_seqs(self) -> int:
        """Rows in all."""
        return self._max_num_seqs

    def _ends(self, seq: Sequence, token_id: int) -> FinishReason | None:
        if token_id in seq.stop_token_ids and seq.num_output >= seq.request.params.min_tokens:
            return FinishReason.STOP
        if len(seq.token_ids) >= seq.max_length:
            return FinishReason.LENGTH
        return None

    def _plan_decode(self, plan: StepPlan) -> None:
        page_size = self._page_size
        running = SequenceState.RUNNING  # 50 ns to look up, for each of hundreds of rows
        # Running is sorted best first and victims come from its end, so that a sequence which
        # was planned is never preempted by a later one of the same step.
        for seq in list(self.running):
            if not seq.decoding or seq.state is not running:
                continue
            if seq.needs_tokens and (seq.num_inflight or seq.awaits_grammar):
                continue
            # Where the step ends; the token that it brings is not computed in it.
            end = len(seq.token_ids) + seq.num_inflight
            if end >= seq.max_length:
                continue
            if end > len(seq.pages) * page_size and not self._grow(seq, end, plan):
                continue
            seq.num_computed = end
            seq.num_inflight += 1
            plan.decode.append(seq)

    def _grow(self, seq: Sequence, num_tokens: int, plan: StepPlan) -> bool:
        missing = self.pool.pages_for(num_tokens) - len(seq.pages)
        while self.pool.num_available < missing:
            victim = self._pick_victim(plan)
            if victim is None:
                return False
            self._preempt(victim, plan)
            if victim is seq:
                return False
        seq.pages.extend(self.pool.allocate(missing))
        return True

    def _pick_victim(self, plan: StepPlan) -> Sequence | None:
        """Return the lowest priority, then newest sequence that the step does not compute yet.

        Siblings of equal priority are newer than the leader they wait for, so they go first; a
        leader of lower priority may go before them, because they lead on from its pages.
        """
        planned = set(map(id, plan.decode))
        for victim in reversed(self.running):
            if id(victim) not in planned:
                return victim
        return None

    def _preempt(self, seq: Sequence, plan: StepPlan) -> None:
        self.running.remove(seq)
        seq.move_to(SequenceState.WAITING)
        self.preemptions_total += 1
        self.preempted_tokens_total += seq.num_computed
        self.estimator.correct(seq.request.lane, seq.num_output)
        self._release(seq)
        insort(self.waiting, seq, key=_by_order)
        plan.preempted.append(seq)

    def _release(self, seq: Sequence) -> None:
        self.prefill.drop_claim(seq)
        self.pool.release(seq.pages)
        if seq.row is not None:
            self._free_rows.append(seq.row)
            if self._on_release is not None:
                self._on_release(seq.row)
        seq.rewind()

    def _admit(self, plan: StepPlan) -> None:
        if plan.preempted:
            return
        position = 0
        promised: int | None = None
        while position < len(self.waiting):
            head = self.waiting[position]
            if head.num_inflight:
                return
            group = self._group_at(position)
            if any(seq.awaits_grammar for seq in group):
                position += len(group)
                continue
            if len(group) > len(self._free_rows):
                return
            if promised is None:
                promised = self._demand.of_running(self.running, self.estimator)
            prompts, outputs = self._demand.of_new(group, self.estimator)
            room = self.pool.num_available - promised
            if prompts + (outputs if self.running else 0) > room:
                # Alone on the pool, one choice goes after the other.
                if self.running:
                    return
                group = group[:1]
            promised += prompts + outputs
            evictable = self.pool.num_evictable
            for seq in group:
                self.waiting.remove(seq)
                self._start(seq)
            # Hits on pages that nobody held are taken already; they are promised no more.
            promised -= evictable - self.pool.num_evictable

    def _group_at(self, position: int) -> list[Sequence]:
        """Return the choices that are admitted together: all of a request that never ran."""
        head = self.waiting[position]
        if head.was_admitted or head.request.params.n == 1:
            return [head]
        return [
            seq
            for seq in self.waiting[position : position + head.request.params.n]
            if seq.request is head.request and not seq.was_admitted and not seq.num_inflight
        ]

    def _start(self, seq: Sequence) -> None:
        seq.move_to(SequenceState.RUNNING)
        seq.row = self._free_rows.pop()
        _insert(self.running, seq)
        seq.was_admitted = True
        self.prefill.take_hits(seq)

    def _plan_prefill(self, plan: StepPlan) -> None:
        while True:
            candidates = [seq for seq in self.running if not (seq.decoding or seq.awaits_grammar)]
            if not candidates:
                return
            streaming = any(seq.decoding for seq in self.running)
            self.prefill.plan_step(candidates, self.sizer, plan, streaming=streaming)
            for chunk in plan.prefill:
                if chunk.end == chunk.seq.prefill_end:
                    chunk.seq.decoding = True
                    chunk.seq.is_refilling = False
                    chunk.seq.num_inflight += 1
            if not plan.is_empty or any(seq.num_inflight for seq in self.running):
                return
            # Nothing can move: the newest gives its pages to the rest.
            victim = self._pick_victim(plan)
            if victim is None or len(self.running) == 1:
                return
            self._preempt(victim, plan)

    def _plan_drafts(self, plan: StepPlan, drafts: Drafts) -> None:
        """Put drafts behind what the plan computes of their sequences anyway.

        They get pages that nobody else wants in this step, and are cut to fit.
        """
        room = MAX_DRAFTED_ROWS
        chunks = [chunk for chunk in plan.prefill if chunk.samples]
        chunks += (
            PrefillChunk(seq, len(seq.token_ids) - 1, len(seq.token_ids), samples=True)
            for seq in plan.decode
        )
        drafted: dict[Sequence, PrefillChunk] = {}
        for chunk in chunks:
            draft = self._take_draft(chunk.seq, drafts.get(chunk.seq, ()), room)
            if draft:
                drafted[chunk.seq] = chunk._replace(draft=draft)
                room -= 1 + len(draft)
        plan.decode = [seq for seq in plan.decode if seq not in drafted]
        plan.prefill = [chunk for chunk in plan.prefill if chunk.seq not in drafted]
        plan.prefill += drafted.values()

    def _take_draft(self, seq: Sequence, draft: Ids[int], room: int) -> tuple[int, ...]:
        """Give a sequence of the plan a draft, of as many tokens as have pages, and return it."""
        known = len(seq.token_ids)
        in_pages = (len(seq.pages) + self.pool.num_available) * self._page_size
        most = min(seq.max_length - 1, in_pages, known + room - 1) - known
        taken = tuple(draft[: max(0, most)])
        if taken:
            missing = self.pool.pages_for(known + len(taken)) - len(seq.pages)
            seq.pages.extend(self.pool.allocate(max(0, missing)))
            seq.num_computed = known + len(taken)
            seq.num_inflight += len(taken)
            seq.draft = taken
        return taken

    def _land(self, seq: Sequence, num_new: int) -> None:
        """Count what a step computed of a sequence whose tokens are all known now.

        What it computed for tokens that it did not bring counts no more.
        """
        seq.num_inflight = 0
        if seq.draft and seq.state is SequenceState.RUNNING:
            seq.num_computed = len(seq.token_ids) + num_new - 1
        seq.draft = ()
        seq.needs_tokens = seq.grammar is not None
