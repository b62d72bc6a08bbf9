"""A launched step, and what it leaves on the host."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.engine.containment import Containment
    from tokenbus.engine.sampling.logprobs import RawLogprobs
    from tokenbus.engine.sampling.sampler import SampledTokens
    from tokenbus.engine.scheduling.plan import PrefillChunk, StepPlan
    from tokenbus.engine.scheduling.sequence import Sequence
    from tokenbus.engine.types import TokenLogprobs

    _Scores = list[tuple[Sequence, int, RawLogprobs]]
    _ReadScores = list[tuple[Sequence, int, list[TokenLogprobs | None]]]


@dataclass(slots=True)
class PendingStep:
    """A launched step whose tokens have not been read back.

    `draws` follow the order of `seqs`; each holds the tokens of a part of them. So do
    `drafted_draws` that of `drafted`, with a token per place. Scores are sequence, index of the
    first token, and the scores from there on.
    """

    plan: StepPlan
    seqs: list[Sequence]
    drafted: list[PrefillChunk]
    draws: list[SampledTokens] = field(default_factory=list)
    drafted_draws: list[SampledTokens] = field(default_factory=list)
    prompt_scores: _Scores = field(default_factory=list)
    forced_scores: _Scores = field(default_factory=list)
    ready: torch.cuda.Event | None = None

    @classmethod
    def of(cls, plan: StepPlan) -> PendingStep:
        """Return a step that has drawn nothing yet."""
        return cls(plan, plan.sampled(), plan.drafted())

    @property
    def is_done(self) -> bool:
        """Tell whether a GPU is known to have computed it, without a wait."""
        ready = self.ready
        return ready is not None and bool(ready.query())  # type: ignore[no-untyped-call]

    def leave(self) -> None:
        """Start the copy of what was drawn or forced from a GPU to the host."""
        if not (self.draws or self.drafted_draws or self.forced_scores):
            return
        # The next replay of a graph writes over what this one left.
        self.draws = [drawn.leave() for drawn in self.draws]
        self.drafted_draws = [drawn.leave() for drawn in self.drafted_draws]
        self.forced_scores = [
            (seq, first, scores.leave(len(scores.token_ids)))
            for seq, first, scores in self.forced_scores
        ]
        self.ready = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no type here
        self.ready.record()


class DrawnTokens(NamedTuple):
    """What a step drew of a sequence with a draft: as many of it as were right, and one more."""

    seq: Sequence
    draft: tuple[int, ...]
    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step sampled, on the host.

    `token_ids` and `logprobs` have an entry per sequence of `PendingStep.seqs`, `drawn` one per
    chunk of `drafted`. A token below 0 is none: see `kernels/draw_outcomes.py`. Scores are
    sequence, index of the first token, and the entries from there on.
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs | None]
    drawn: list[DrawnTokens]
    prompt_logprobs: _ReadScores
    forced_logprobs: _ReadScores


def read_step(pending: PendingStep, containment: Containment[Sequence]) -> StepResult:
    """Bring the tokens of a step that is done to the host."""
    token_ids: list[int] = []
    logprobs: list[TokenLogprobs | None] = []
    for drawn in pending.draws:
        ids = drawn.token_ids.tolist()
        if drawn.logprobs is None:
            logprobs.extend([None] * len(ids))
        else:
            seqs = pending.seqs[len(token_ids) : len(token_ids) + len(ids)]
            wanted = [seq.request.params.logprobs for seq in seqs]
            logprobs.extend(drawn.logprobs.to_host(wanted))
        token_ids.extend(ids)
    prompt_logprobs = []
    for seq, first, scores in pending.prompt_scores:
        with containment.guard(seq, "its prompt's logprobs were read"):
            wanted = [seq.request.params.prompt_logprobs] * len(scores.token_ids)
            prompt_logprobs.append((seq, first, scores.to_host(wanted)))
    forced_logprobs = []
    for seq, first, scores in pending.forced_scores:
        with containment.guard(seq, "its forced tokens' logprobs were read"):
            wanted = [seq.request.params.logprobs] * len(scores.token_ids)
            forced_logprobs.append((seq, first, scores.to_host(wanted)))
    drawn_tokens = list(_read_drafted(pending)) if pending.drafted else []
    return StepResult(token_ids, logprobs, drawn_tokens, prompt_logprobs, forced_logprobs)


def _read_drafted(pending: PendingStep) -> Iterator[DrawnTokens]:
    """Yield what counts of the draws of each draft: up to the first that differs from it."""
    chunks = iter(pending.drafted)
    for drawn in pending.drafted_draws:
        ids = drawn.token_ids.tolist()
        first = 0
        while first < len(ids):
            chunk = next(chunks)
            end = first + 1 + len(chunk.draft)
            num_right = 0
            while num_right < len(chunk.draft) and ids[first + num_right] == chunk.draft[num_right]:
                num_right += 1
            kept = slice(first, first + num_right + 1)
            logprobs: list[TokenLogprobs | None] = []
            num_top = chunk.seq.request.params.logprobs
            if num_top is not None and drawn.logprobs is not None:
                logprobs = drawn.logprobs.part(kept).to_host([num_top] * (num_right + 1))
            yield DrawnTokens(chunk.seq, chunk.draft, ids[kept], logprobs)
            first = end
