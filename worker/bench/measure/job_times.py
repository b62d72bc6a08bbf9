"""The jobs of a run as columns of times, from which every figure is taken."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenbus.producer.contract.events import FINISHED_REASONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.bench.load.messages import JobReport
    from tokenbus.worker.engine.step_log import HandoverTimes, Times

_NOTHING = np.empty(0)


class JobTimes:
    """One job: its reader's report, with the engine's times where they were noted.

    arrivals_s: [events]; counts: [events]; token_times_s: [tokens], tokens of one event share its
    time. All times are of one clock, in seconds.
    """

    def __init__(self, report: JobReport, handover_times: HandoverTimes | None) -> None:
        self.report = report
        self.handover_times = handover_times
        self.arrivals_s: Times = np.frombuffer(report.arrivals, np.float64)
        self.counts: np.ndarray[Any, np.dtype[np.uint32]] = np.frombuffer(report.counts, np.uint32)

    @property
    def finished(self) -> bool:
        """Tell whether the job ended as it should."""
        return self.report.outcome in FINISHED_REASONS

    @cached_property
    def token_times_s(self) -> Times:
        """When each token reached its reader."""
        return np.repeat(self.arrivals_s, self.counts)

    @property
    def ttft_s(self) -> float | None:
        """Submit to the first token received."""
        if not len(self.arrivals_s):
            return None
        return float(self.arrivals_s[0]) - self.report.submitted_s

    @property
    def tpot_s(self) -> float | None:
        """Mean gap between tokens; None for fewer than two."""
        num_tokens = self.report.output_tokens
        if num_tokens < 2:
            return None
        return float(self.arrivals_s[-1] - self.arrivals_s[0]) / (num_tokens - 1)

    @property
    def e2e_s(self) -> float | None:
        """Submit to the terminal event received."""
        if self.report.ended_s is None:
            return None
        return self.report.ended_s - self.report.submitted_s

    @property
    def lags_s(self) -> Times:
        """Hand-off by the engine to the reader's callback, per token; unknown ones left out."""
        if self.handover_times is None:
            return _NOTHING
        sent = self.handover_times.tokens_s
        num = min(len(sent), len(self.token_times_s))
        lags = self.token_times_s[:num] - sent[:num]
        return lags[~np.isnan(lags)]

    @property
    def first_token_overhead_s(self) -> float | None:
        """TTFT less the time the engine had the job before it handed its first token over."""
        if (
            self.handover_times is None
            or self.ttft_s is None
            or not len(self.handover_times.tokens_s)
        ):
            return None
        in_engine_s = float(self.handover_times.tokens_s[0]) - self.handover_times.added_s
        return None if np.isnan(in_engine_s) else self.ttft_s - in_engine_s

    def meets(self, ttft_target_ms: float, itl_target_ms: float) -> bool:
        """Tell whether first token and mean gap of a finished job are within the targets."""
        ttft_s, tpot_s = self.ttft_s, self.tpot_s
        if not self.finished or ttft_s is None or ttft_s * 1e3 > ttft_target_ms:
            return False
        return tpot_s is None or tpot_s * 1e3 <= itl_target_ms


def gaps_s(job_times: Sequence[JobTimes]) -> Times:
    """Return every gap between consecutive tokens of a job; zero inside an event."""
    between = [np.diff(job.arrivals_s) for job in job_times]
    num_inside = sum(int(job.counts.sum()) - len(job.counts) for job in job_times)
    return np.concatenate([*between, np.zeros(num_inside)])


def known(values: Sequence[float | None]) -> Times:
    """Return the values that there are."""
    return np.array([value for value in values if value is not None])
