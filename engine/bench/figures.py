"""Figures of a bench: what a run of a workload took, and all runs of one workload."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    """One run of one workload; times in seconds, `step_ms` percentiles over all steps."""

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
