"""Figures of the demo: the reader's clock per job, summed up for the table and for JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Percentiles:
    """The middle and the tail of a sample in milliseconds; 0 for an empty one."""

    p50: float
    p95: float

    @classmethod
    def of_seconds(cls, values_s: Sequence[float]) -> Percentiles:
        """Take the nearest-rank percentiles of durations given in seconds."""
        ordered = sorted(values_s)
        p50, p95 = (
            ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
            for share in (0.50, 0.95)
        )
        return cls(round(p50 * 1000, 2), round(p95 * 1000, 2))


@dataclass(slots=True)
class JobClock:
    """When the tokens of one job reached its reader; times are `time.monotonic()` seconds."""

    submitted_s: float
    arrivals_s: list[float] = field(default_factory=list)
    ended_s: float | None = None
    finish_reason: str | None = None
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0

    def tokens_arrived(self, num_tokens: int, now_s: float) -> None:
        """Note tokens that came in one event: they share its time, so gaps inside are zero."""
        self.num_tokens += num_tokens
        self.arrivals_s.extend([now_s] * num_tokens)

    @property
    def finished(self) -> bool:
        """True if the job ended as it should: by its stop rule or its length."""
        return self.finish_reason in {"stop", "length"}

    @property
    def ttft_s(self) -> float | None:
        """Seconds from submit to the first token received; None before it."""
        return self.arrivals_s[0] - self.submitted_s if self.arrivals_s else None

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between consecutive tokens."""
        return [b - a for a, b in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]


@dataclass(frozen=True, slots=True)
class BusFigures:
    """The bus ride in numbers; tokens/s runs from the first submit to the last event received."""

    jobs: int
    finished: int
    output_tokens: int
    tokens_per_s: float
    ttft_ms: Percentiles
    itl_ms: Percentiles
    peak_running: int
    prefix_hit_rate: float

    @classmethod
    def of(cls, clocks: Sequence[JobClock], *, peak_running: int) -> BusFigures:
        """Sum up jobs that have all ended."""
        start = min((clock.submitted_s for clock in clocks), default=0.0)
        end = max((clock.ended_s or start for clock in clocks), default=start)
        output_tokens = sum(clock.num_tokens for clock in clocks)
        prompt_tokens = sum(clock.num_prompt_tokens for clock in clocks)
        cached_tokens = sum(clock.num_cached_tokens for clock in clocks)
        return cls(
            jobs=len(clocks),
            finished=sum(clock.finished for clock in clocks),
            output_tokens=output_tokens,
            tokens_per_s=round(output_tokens / (end - start), 2) if end > start else 0.0,
            ttft_ms=Percentiles.of_seconds([c.ttft_s for c in clocks if c.ttft_s is not None]),
            itl_ms=Percentiles.of_seconds([gap for clock in clocks for gap in clock.gaps_s]),
            peak_running=peak_running,
            prefix_hit_rate=round(cached_tokens / prompt_tokens, 4) if prompt_tokens else 0.0,
        )
