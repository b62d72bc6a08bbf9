"""A scheduler without a model: the test says what is sampled."""

from __future__ import annotations

from tokenbus.engine.scheduling.chunk_sizer import ChunkSizer
from tokenbus.engine.scheduling.output_estimator import OutputEstimator
from tokenbus.engine.scheduling.page_pool import PagePool
from tokenbus.engine.scheduling.scheduler import Scheduler
from tokenbus.engine.scheduling.sequence import Sequence
from tokenbus.engine.types import Request, SamplingParams

EOS = 2


class Optimist(OutputEstimator):
    """Expects one token per output, which over-admits until pages run out."""

    def expected(self, lane: str, max_tokens: int) -> int:  # noqa: ARG002
        """Return 1."""
        return 1


class Bench:
    """A scheduler with a step that samples whatever the test says."""

    def __init__(
        self,
        num_pages: int = 1001,
        page_size: int = 16,
        budget: int = 1024,
        max_num_seqs: int = 64,
        *,
        prefix_cache: bool = True,
    ) -> None:
        self.pool = PagePool(num_pages, page_size)
        self.scheduler = Scheduler(
            self.pool,
            ChunkSizer(budget, None),
            max_num_seqs=max_num_seqs,
            prefix_cache=prefix_cache,
        )
        self.count = 0

    def add(
        self,
        num_prompt: int,
        *,
        priority: int = 1,
        first: int | None = None,
        prompt: list[int] | None = None,
        resumed: tuple[int, ...] = (),
        **params: object,
    ) -> Sequence:
        """Queue a request and return its first choice; prompts differ unless told otherwise."""
        base = 1000 * (self.count + 1) if first is None else first
        ids = prompt or [base + i for i in range(num_prompt)]
        sampling = SamplingParams(**params)  # type: ignore[arg-type]
        request = Request(
            self.count, tuple(ids), sampling, priority, resumed_ids=(resumed,) if resumed else ()
        )
        seqs = [Sequence(request, choice, self.count, (EOS,)) for choice in range(sampling.n)]
        self.count += 1
        self.scheduler.add(seqs)
        return seqs[0]

    def step(self, tokens: dict[Sequence, int] | None = None) -> dict[Sequence, int]:
        """Plan and complete one step; return the prompt tokens each sequence computed."""
        plan = self.scheduler.schedule()
        for seq in plan.sampled():
            self.scheduler.complete(seq, ((tokens or {}).get(seq, 7),))
        self.scheduler.check_integrity()
        return {chunk.seq: chunk.end - chunk.start for chunk in plan.prefill}
