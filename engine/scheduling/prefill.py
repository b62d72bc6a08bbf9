"""Prefill planning: which prompt tokens a step computes, and which siblings wait.

Sequences whose next page is being computed by another one do not compute it again. They are its
siblings: they wait, and take each page as soon as a chunk that fills it was planned, which may be
in the same step, because every layer writes all keys and values before any query reads them. If
the leader goes, the oldest sibling finds the page unclaimed and leads from there.

Pages are hashed when somebody has to know: one that finds nothing in the cache hashes its first
alone before it is planned, and claims the next that it computes, no others. What a step computes is
hashed when that step is under way, unless siblings wait for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.scheduling.plan import PrefillChunk
from tokenbus.engine.scheduling.shares import choose_wishes, crowd_shares, shares_in_turn

if TYPE_CHECKING:
    from tokenbus.engine.scheduling.chunk_sizer import ChunkSizer
    from tokenbus.engine.scheduling.page_pool import PagePool
    from tokenbus.engine.scheduling.plan import StepPlan
    from tokenbus.engine.scheduling.prefix_cache import PageHash
    from tokenbus.engine.scheduling.sequence import Sequence


class PrefillPlanner:
    """Splits a step's token budget over the sequences whose prompts are not computed yet."""

    def __init__(self, pool: PagePool, *, prefix_cache: bool) -> None:
        self._pool = pool
        self._enabled = prefix_cache
        self._claims: dict[PageHash, Sequence] = {}
        self._unregistered: list[Sequence] = []
        self.cached_tokens_total = 0

    def cacheable_pages(self, seq: Sequence) -> int:
        """Pages of a sequence that may come from the cache: full ones, but one token is left.

        Tokens that wait for their log-probabilities are computed, and the one before them.
        """
        if not self._enabled or not seq.caches_prefix:
            return 0
        return (seq.num_scored - 1) // self._pool.page_size

    def count_hits(self, seq: Sequence) -> tuple[int, int, int]:
        """Return how many leading pages are (held, evictable, being computed by a leader)."""
        held = evictable = 0
        page_size, lookup = self._pool.page_size, self._pool.lookup
        for page_idx in range(self.cacheable_pages(seq)):
            page_hash = seq.page_hash(page_idx, page_size)
            page_id = lookup(page_hash)
            if page_id is None:
                leader = self._claims.get(page_hash)
                claimed = 0 if leader is None else self._num_alike(leader, seq, page_idx)
                return held, evictable, claimed
            if self._pool.ref_count(page_id):
                held += 1
            else:
                evictable += 1
        return held, evictable, 0

    def _num_alike(self, leader: Sequence, seq: Sequence, first_page: int) -> int:
        """Count the cacheable pages from `first_page` on that two sequences have in common.

        That page is one of them.
        """
        page_size = self._pool.page_size
        first_end = (first_page + 1) * page_size
        last_end = min(self.cacheable_pages(leader), self.cacheable_pages(seq)) * page_size
        for end in range(first_end, last_end, page_size):
            page = slice(end, end + page_size)
            if leader.token_ids[page] != seq.token_ids[page]:
                return end // page_size - first_page
        return max(first_end, last_end) // page_size - first_page

    def take_hits(self, seq: Sequence) -> None:
        """Share cached pages from the sequence's position on; find its leader, or claim to lead."""
        seq.leader = None
        page_size = self._pool.page_size
        if seq.num_computed % page_size:
            return
        limit = self.cacheable_pages(seq)
        page_idx = seq.num_computed // page_size
        lookup = self._pool.lookup
        while page_idx < limit and page_idx == len(seq.pages):
            page_hash = seq.page_hash(page_idx, page_size)
            page_id = lookup(page_hash)
            if page_id is None:
                leader = self._claims.get(page_hash)
                if leader is not None and leader is not seq:
                    seq.leader = leader
                    return
                break
            self._pool.share(page_id)
            seq.pages.append(page_id)
            page_idx += 1
            seq.num_computed = page_idx * page_size
            seq.num_registered = page_idx
        self._claim(seq, page_idx)

    def _claim(self, seq: Sequence, page_idx: int) -> None:
        """Let others wait for the page that a sequence computes next, if they may share it."""
        page_hash = None
        if page_idx < self.cacheable_pages(seq):
            page_hash = seq.page_hash(page_idx, self._pool.page_size)
        if page_hash == seq.claim:
            return
        self.drop_claim(seq)
        if page_hash is not None and self._claims.setdefault(page_hash, seq) is seq:
            seq.claim = page_hash

    def drop_claim(self, seq: Sequence) -> None:
        """Stop leading (the sequence was preempted, aborted or is done with its prompt)."""
        if seq.claim is not None:
            del self._claims[seq.claim]
            seq.claim = None

    def plan_step(
        self, candidates: list[Sequence], sizer: ChunkSizer, plan: StepPlan, *, streaming: bool
    ) -> None:
        """Add chunks for `candidates` (best first) of what a step may compute.

        What was lost elsewhere is computed again one after the other, new prompts share the rest.
        Readers of lost ones wait in the middle of a sentence, so these come first; but they come in
        a crowd, so they may lengthen a step only so far while others are `streaming` here.
        """
        budget = sizer.budget(streaming=streaming)
        refilling = [seq for seq in candidates if seq.is_refilling]
        if refilling and streaming:
            most = sizer.refill_budget(streaming=True)
            budget -= self.plan(refilling, most, plan, in_turn=True)
            candidates = [seq for seq in candidates if not seq.is_refilling]
        self.plan(candidates, budget, plan)

    def plan(
        self, candidates: list[Sequence], budget: int, plan: StepPlan, *, in_turn: bool = False
    ) -> int:
        """Add chunks for `candidates` (best first) of at most `budget` tokens to the plan.

        As many as `choose_wishes` says get their shares; `in_turn`, the next one gets what the ones
        before it leave.
        Returns: the number of tokens planned.
        """
        open_seqs = list(candidates)
        total = 0
        while open_seqs and budget > 0:
            self.register_planned()
            active: list[Sequence] = []
            waiting: list[Sequence] = []
            for seq in open_seqs:
                self.take_hits(seq)
                (active if seq.leader is None else waiting).append(seq)
            taken = self._plan_round(active, budget, plan, in_turn=in_turn)
            total += taken
            if not taken:
                break
            budget -= taken
            open_seqs = waiting
        return total

    def _plan_round(
        self, active: list[Sequence], budget: int, plan: StepPlan, *, in_turn: bool
    ) -> int:
        wanted = [seq.prefill_end - seq.num_computed for seq in active]
        if not in_turn:
            chosen = choose_wishes(wanted, budget)
            active, wanted = [active[i] for i in chosen], [wanted[i] for i in chosen]
        shares = shares_in_turn(wanted, budget) if in_turn else crowd_shares(wanted, budget)
        taken = 0
        for seq, share in zip(active, shares, strict=True):
            if share:
                taken += self._plan_chunk(seq, share, plan)
        return taken

    def _plan_chunk(self, seq: Sequence, num_tokens: int, plan: StepPlan) -> int:
        page_size = self._pool.page_size
        start, last = seq.num_computed, seq.prefill_end
        end = min(start + num_tokens, last)
        missing = self._pool.pages_for(end) - len(seq.pages)
        if missing > self._pool.num_available:
            missing = self._pool.num_available
            end = min(end, (len(seq.pages) + missing) * page_size)
        if end <= start:
            return 0
        if missing > 0:
            seq.pages.extend(self._pool.allocate(missing))
        if not seq.was_started:
            seq.was_started = True
            seq.num_cached = start
            self.cached_tokens_total += start
            plan.admitted.append(seq)
        seq.num_computed = end
        if self._enabled:
            self._unregistered.append(seq)
        plan.prefill.append(PrefillChunk(seq, start, end, samples=end == len(seq.token_ids)))
        if end == last:
            self.drop_claim(seq)
        return end - start

    def register_planned(self) -> None:
        """Hash the pages that planned chunks fill: before anybody looks for them or frees them."""
        for seq in self._unregistered:
            self.register_full_pages(seq)
        self._unregistered.clear()

    def register_full_pages(self, seq: Sequence) -> None:
        """Hash the pages whose tokens are all known and computed (or planned in this step)."""
        if not self._enabled:
            return
        page_size = self._pool.page_size
        num_full = min(seq.num_computed, len(seq.token_ids)) // page_size
        if num_full <= seq.num_registered:
            return
        hashes = seq.page_hashes(num_full, page_size)
        for page_idx in range(seq.num_registered, num_full):
            self._pool.register(seq.pages[page_idx], hashes[page_idx])
        seq.num_registered = num_full
        if seq.claim is not None:
            self._claim(seq, num_full)
