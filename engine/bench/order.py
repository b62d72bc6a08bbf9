"""Orders of `tokenbus bench cpu`, and the interface by which an engine takes part."""

from __future__ import annotations

import json
import random
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass

# Ids that prompts are drawn from: plain tokens in every vocabulary of some size.
_NUM_IDS = 10_000


@dataclass(frozen=True, slots=True)
class Case:
    """Sequences sent at once, greedy, each to its full length, without a shared prefix."""

    name: str
    num_seqs: int
    prompt_len: int
    output_len: int

    def prompts(self, seed: int) -> list[list[int]]:
        """Draw the prompts, the same for every contestant."""
        rng = random.Random(f"{self.name}/{seed}")
        return [[rng.randrange(_NUM_IDS) for _ in range(self.prompt_len)]
                for _ in range(self.num_seqs)]  # fmt: skip


@dataclass(frozen=True, slots=True)
class ContestOrder:
    """What a contestant is to run, one case after the other; `gguf`: a file for llama.cpp."""

    contestant: str
    model: str
    dtype: str
    num_threads: int
    cases: tuple[Case, ...]
    seed: int
    gguf: str | None = None

    @property
    def longest(self) -> int:
        """Return the tokens of the longest sequence of all cases."""
        return max(case.prompt_len + case.output_len for case in self.cases)

    def to_json(self) -> str:
        """Return the order as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ContestOrder:
        """Read an order."""
        fields = json.loads(text)
        return cls(**{**fields, "cases": tuple(Case(**case) for case in fields["cases"])})


class Contestant(ABC):
    """An engine with its model loaded."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Continue all prompts at once, greedily, by exactly `num_tokens` each."""

    def remark(self) -> str | None:
        """Return what readers of its figures have to know, if anything."""
        return None

    def reset(self) -> None:  # noqa: B027 # most keep nothing
        """Drop what earlier cases left behind."""
