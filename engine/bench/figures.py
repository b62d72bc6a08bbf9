"""Figures of a bench: what a run of a workload took, and all runs of one workload."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median


@dataclass(frozen=True, slots=True)
class Achieved:
    """What a run demanded of a machine at least, divided by its duration.

    read_tb_s counts all weights once per step and the visible keys and values once per sequence and
    step, whether or not a prefix was read once for several. tflop_s counts multiplications and
    additions of linears and attention, cached prompt tokens left out.
    """

    read_tb_s: float
    tflop_s: float


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One run of one workload; times in seconds, `step_ms` percentiles over all steps.

    distinct_experts: experts that got any token, per mixture and forward pass; None without any.
    """

    workload: str
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int
    duration_s: float
    tokens_per_s: float
    steps: int
    step_ms: dict[str, float]
    preemptions: int
    achieved: Achieved | None = None
    distinct_experts: float | None = None

    @property
    def prompt_tokens_per_s(self) -> float:
        """Prompt tokens of all sequences, cached ones too, by the time of the whole run."""
        return self.prompt_tokens / self.duration_s


@dataclass(frozen=True, slots=True)
class FirstTokenReport:
    """Times to the first token of lone prompts, and what they were measured on.

    first_token_ms: from the request to its token, by tokens of the prompt, in the order of the
    runs; nothing of a prompt was cached.
    """

    model: str
    machine: dict[str, str]
    ceilings: dict[str, float]
    first_token_ms: dict[int, list[float]]

    def medians_ms(self) -> dict[int, float]:
        """Return the median of each length."""
        return {length: median(times) for length, times in self.first_token_ms.items()}


@dataclass(slots=True)
class WorkloadReport:
    """All runs of a workload, the best of them, and what they ran on."""

    workload: str
    model: str
    machine: dict[str, str]
    ceilings: dict[str, float]
    runs: list[RunFigures] = field(default_factory=list)
    budget_ms: dict[str, float] = field(default_factory=dict)
    kernels_ms: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> RunFigures:
        """The fastest run."""
        return max(self.runs, key=lambda run: run.tokens_per_s)
