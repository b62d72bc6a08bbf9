"""Figures of a run: each token at its stream and at the native reader, paired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tokenbus.worker.bench.measure.distribution import Distribution

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.worker.bench.gateway.messages import StreamTimes
    from tokenbus.worker.bench.gateway.options import GatewayBenchOptions
    from tokenbus.worker.engine.step_log import HandoverTimes, Times

_MAX_SHOWN_FAULTS = 5


class GatewayFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Figures of one run; of the window alone where nothing else is said.

    added_ms: each token at its stream less the same token at the native reader.
    stream_lag_ms, native_lag_ms: from the engine's hand-over to each of the two.
    cpu_us_per_token: of the gateway, user and system. gateway_cores: its CPU time over the clock's.
    memory_per_stream_bytes: what each open stream has added to the gateway's resident memory.
    longest_silence_ms: of each stream, the longest time in which nothing came, comments included.
    num_ok: streams that ended as they should, of `num_streams`.
    """

    num_streams: int
    num_ok: int
    num_tokens: int
    tokens_per_s: float
    added_ms: Distribution
    stream_lag_ms: Distribution
    native_lag_ms: Distribution
    ttft_ms: Distribution
    longest_silence_ms: Distribution
    num_comments: int
    cpu_us_per_token: float
    gateway_cores: float
    memory_per_stream_bytes: int
    memory_bytes: int
    native_cpu_us_per_token: float
    faults: list[str]


@dataclass(frozen=True, slots=True)
class MeasuredStreams:
    """A run before it is summed up; CPU times are those of the window."""

    options: GatewayBenchOptions
    begin_s: float
    end_s: float
    streams: Sequence[StreamTimes]
    natives: Sequence[StreamTimes]
    handover_times: Mapping[int, HandoverTimes]
    gateway_cpu_s: float
    native_cpu_s: float
    memory_idle_bytes: int
    memory_bytes: int


class _Tokens:
    """The tokens of one reader: by stream, index and time; the frames of an end are none."""

    def __init__(
        self, reports: Sequence[StreamTimes], begin_s: float, end_s: float, max_tokens: int
    ) -> None:
        self._found: dict[int, tuple[Any, Times]] = {}
        self.firsts: list[float] = []
        self.num_tokens = 0
        for report in reports:
            cursors = np.frombuffer(report.cursors, np.uint32)
            times: Times = np.frombuffer(report.times, np.float64)
            inside = (times >= begin_s) & (times < end_s) & (cursors <= max_tokens)
            self._found[report.number] = (cursors[inside], times[inside])
            self.num_tokens += int(inside.sum())
            if len(times):
                self.firsts.append(float(times[0]) - report.asked_s)

    def less(self, others: _Tokens) -> Times:
        """Return how much later each token was here than there."""
        found = [np.empty(0)]
        for number, (cursors, times) in self._found.items():
            theirs = others._found.get(number)
            if theirs is not None:
                _, ours_at, theirs_at = np.intersect1d(cursors, theirs[0], return_indices=True)
                found.append(times[ours_at] - theirs[1][theirs_at])
        return np.concatenate(found)

    def since(self, handed: Mapping[int, HandoverTimes], seeds: Sequence[int]) -> Times:
        """Return how long each token took from the engine's hand-over."""
        found = [np.empty(0)]
        for number, (cursors, times) in self._found.items():
            known = handed.get(seeds[number])
            if known is not None:
                inside = cursors <= len(known.tokens_s)
                found.append(times[inside] - known.tokens_s[cursors[inside] - 1])
        lags = np.concatenate(found)
        return lags[~np.isnan(lags)]


def sum_up(measured: MeasuredStreams) -> GatewayFigures:
    """Return the figures of a run."""
    options, length_s = measured.options, measured.end_s - measured.begin_s
    window = (measured.begin_s, measured.end_s, options.max_tokens)
    streams, natives = _Tokens(measured.streams, *window), _Tokens(measured.natives, *window)
    faults = [
        f"{who} {report.number}: {fault}"
        for who, reports in (("stream", measured.streams), ("native", measured.natives))
        for report in reports
        if (fault := report.fault or _gap_in(report, options)) is not None
    ]
    num_ok = options.streams - sum(fault.startswith("stream") for fault in faults)
    grown = measured.memory_bytes - measured.memory_idle_bytes
    silences = [report.longest_silence_s for report in measured.streams]
    return GatewayFigures(
        num_streams=options.streams,
        num_ok=num_ok,
        num_tokens=streams.num_tokens,
        tokens_per_s=round(streams.num_tokens / length_s, 1),
        added_ms=Distribution.of_seconds(streams.less(natives)),
        stream_lag_ms=Distribution.of_seconds(
            streams.since(measured.handover_times, options.seeds)
        ),
        native_lag_ms=Distribution.of_seconds(
            natives.since(measured.handover_times, options.seeds)
        ),
        ttft_ms=Distribution.of_seconds(streams.firsts),
        longest_silence_ms=Distribution.of_seconds(silences),
        num_comments=sum(report.num_comments for report in measured.streams),
        cpu_us_per_token=_us_per_token(measured.gateway_cpu_s, streams.num_tokens),
        gateway_cores=round(measured.gateway_cpu_s / length_s, 4),
        memory_per_stream_bytes=grown // options.streams,
        memory_bytes=measured.memory_bytes,
        native_cpu_us_per_token=_us_per_token(measured.native_cpu_s, natives.num_tokens),
        faults=faults[:_MAX_SHOWN_FAULTS],
    )


def _us_per_token(cpu_s: float, num_tokens: int) -> float:
    return round(cpu_s / num_tokens * 1e6, 2) if num_tokens else 0.0


def _gap_in(report: StreamTimes, options: GatewayBenchOptions) -> str | None:
    """Tell what is wrong with the cursors of a stream: each comes once, in order, to the last."""
    cursors = np.frombuffer(report.cursors, np.uint32)
    if len(cursors) < options.max_tokens:
        return f"{len(cursors)} of {options.max_tokens} tokens"
    if (np.diff(cursors.astype(np.int64)) != 1).any() or cursors[0] != 1:
        return "its cursors do not follow each other"
    return None
