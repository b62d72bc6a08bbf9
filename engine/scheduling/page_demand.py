"""Page demand: the pages that prompts and expected outputs of sequences will ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.engine.scheduling.output_estimator import OutputEstimator
    from tokenbus.engine.scheduling.page_pool import PagePool
    from tokenbus.engine.scheduling.prefill import PrefillPlanner
    from tokenbus.engine.scheduling.sequence import Sequence


class PageDemand:
    """Counts pages of one pool, and none that the prefix cache or a leader brings."""

    def __init__(self, pool: PagePool, prefill: PrefillPlanner) -> None:
        self._pool = pool
        self._prefill = prefill

    def of_new(self, group: list[Sequence], estimator: OutputEstimator) -> tuple[int, int]:
        """Return the pages a group still has to take for its prompts and for its outputs."""
        prompts = outputs = 0
        shared = 0
        for seq in group:
            held, _, claimed = self._prefill.count_hits(seq)
            own = self._pool.pages_for(self._next_length(seq)) - held - claimed
            # Later choices take the full prompt pages that the first one computes.
            prompts += max(0, own - shared)
            shared = max(0, self._prefill.cacheable_pages(seq) - held - claimed)
            outputs += self._to_come(seq, estimator)
        return prompts, outputs

    def of_running(self, running: Iterable[Sequence], estimator: OutputEstimator) -> int:
        """Return the pages that running sequences will still ask for.

        Those are pages of prompts that are not computed, and of outputs. Most sequences only
        decode; of hundreds of them this is a good part of what a step costs the host, so that
        nothing is called for each of these.
        """
        page_size = self._pool.page_size
        expected_of = estimator.expected
        expected: dict[tuple[str, int], int] = {}
        total = 0
        for seq in running:
            found = len(seq.pages)
            length = len(seq.token_ids) + seq.num_inflight + 1
            if seq.leader is not None:
                # Those that its leader has filled are taken with the next chunk of its own.
                held, _, claimed = self._prefill.count_hits(seq)
                found = max(found, held) + claimed
            request = seq.request
            key = request.lane, request.params.max_tokens
            output = expected.get(key)
            if output is None:
                output = expected[key] = expected_of(*key)
            longest = max(min(seq.num_prompt + output, seq.max_length), length)
            missing = -(-longest // page_size) - found
            if missing > 0:
                total += missing
        return total

    def _to_come(self, seq: Sequence, estimator: OutputEstimator) -> int:
        """Pages of the output expected after the tokens known now and those of the next step."""
        expected = estimator.expected(seq.request.lane, seq.request.params.max_tokens)
        length = self._next_length(seq)
        total = min(seq.max_length, max(seq.num_prompt + expected, length))
        return max(0, self._pool.pages_for(total) - self._pool.pages_for(length))

    def _next_length(self, seq: Sequence) -> int:
        """Count the tokens of a sequence after the steps in flight and one more."""
        return len(seq.token_ids) + seq.num_inflight + 1
