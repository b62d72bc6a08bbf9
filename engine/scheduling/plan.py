"""The plan of a step: what it is going to compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from array import array

    from tokenbus.engine.scheduling.sequence import Sequence

# Tokens of a chunk of an answer up to which they may decode, a row each: a draft's at most.
_MAX_ANSWER_TOKENS = 16


class PrefillChunk(NamedTuple):
    """Known tokens [start, end) of a sequence; `samples` if the next token is drawn after it.

    A `draft` behind them is computed as if it were known. A token is drawn after each of its own
    too, which counts if it was right up to there.
    """

    seq: Sequence
    start: int
    end: int
    samples: bool
    draft: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return self.end - self.start + len(self.draft)

    @property
    def length(self) -> int:
        """Tokens of the sequence up to the last that the step computes."""
        return self.end + len(self.draft)

    @property
    def is_answer(self) -> bool:
        """Tell whether these are a few tokens of an answer: forced by its grammar, or drafted."""
        return self.start >= self.seq.num_prompt and self.num_tokens <= _MAX_ANSWER_TOKENS

    def token_ids(self) -> array[int]:
        """Return the ids that the step computes."""
        ids = self.seq.token_ids[self.start : self.end]
        ids.extend(self.draft)
        return ids


@dataclass(slots=True)
class StepPlan:
    """Chunks to prefill, sequences to decode by one token, and who came and went.

    A decoding sequence that has a draft is a chunk of its last token. Chunks of a few tokens of an
    answer are the last of `prefill`.
    """

    prefill: list[PrefillChunk] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to compute."""
        return not self.prefill and not self.decode

    @property
    def num_prefill_tokens(self) -> int:
        """Tokens of this step that were known before and are no decode."""
        return sum(chunk.end - chunk.start for chunk in self.prefill if not chunk.draft)

    def sampled(self) -> list[Sequence]:
        """Return the sequences that draw one token, in the order of the result's rows."""
        drawing = (chunk.seq for chunk in self.prefill if chunk.samples and not chunk.draft)
        return [*drawing, *self.decode]

    def drafted(self) -> list[PrefillChunk]:
        """Return the chunks that draw more than one."""
        return [chunk for chunk in self.prefill if chunk.draft]
