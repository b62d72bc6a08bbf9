"""The plan of a step: what it is going to compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenbus.engine.scheduling.sequence import Sequence


class PrefillChunk(NamedTuple):
    """Known tokens [start, end) of a sequence; `samples` if the next token is drawn after it."""

    seq: Sequence
    start: int
    end: int
    samples: bool


@dataclass(slots=True)
class StepPlan:
    """Chunks to prefill, sequences to decode by one token, and who came and went."""

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
        """Prompt tokens of this step."""
        return sum(chunk.end - chunk.start for chunk in self.prefill)

    def sampled(self) -> list[Sequence]:
        """Return the sequences that draw a token, in the order of the result's rows."""
        return [*(chunk.seq for chunk in self.prefill if chunk.samples), *self.decode]
