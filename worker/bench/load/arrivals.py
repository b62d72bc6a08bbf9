"""Arrivals of jobs: open loops as a list of times, the same in every process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.worker.bench.options import BenchOptions

# Key of the random stream that arrival times come from.
_TIMES = 1


class Arrival(NamedTuple):
    """A job's place in the plan: when it comes, in which phase of the load."""

    number: int
    at_s: float
    phase: str


class TraceRow(NamedTuple):
    """One request of a trace: when it came, its lengths in tokens."""

    at_s: float
    input_tokens: int
    output_tokens: int


def arrivals(options: BenchOptions, num_fixed: int | None = None) -> list[Arrival]:
    """Return the arrivals of an open loop in order.

    `num_fixed` is the number of jobs of a workload that has one.
    Raises: SettingsInvalid if a trace cannot be read.
    """
    if options.arrival == "at-once":
        count = num_fixed or options.jobs or 1
        found = [Arrival(number, 0.0, "all") for number in range(count)]
    elif options.arrival == "trace":
        rows = read_trace(options)
        found = [Arrival(number, *_warped(row.at_s, options)) for number, row in enumerate(rows)]
    else:
        found = [
            Arrival(number, at_s, phase) for number, (at_s, phase) in enumerate(_poisson(options))
        ]
    limits = [limit for limit in (num_fixed, options.jobs) if limit is not None]
    return found[: min(limits)] if limits else found


def read_trace(options: BenchOptions) -> list[TraceRow]:
    """Read the first `trace_s` seconds of a trace, lengths scaled and capped.

    A line is JSON with `timestamp_ms`, `input_length` and `output_length`.
    Raises: SettingsInvalid naming the line.
    """
    rows: list[TraceRow] = []
    with Path(options.trace or "").open() as lines:
        for number, line in enumerate(lines, 1):
            try:
                wire = json.loads(line)
                at_s = float(wire["timestamp_ms"]) / 1000
                lengths = (int(wire["input_length"]), int(wire["output_length"]))
            except (ValueError, KeyError, TypeError) as error:
                raise SettingsInvalid(f"--trace: line {number}: {error!r}") from None
            if at_s < options.trace_s:
                scaled = [_scaled(length, options) for length in lengths]
                rows.append(TraceRow(at_s, *scaled))
    return sorted(rows)


def span_s(options: BenchOptions, planned: list[Arrival]) -> float:
    """Return how long jobs keep arriving."""
    if options.arrival in ("at-once", "trace"):
        return planned[-1].at_s if planned else 0.0
    return options.duration_s


def _scaled(length: int, options: BenchOptions) -> int:
    return max(1, min(options.cap, round(length / options.length_scale)))


def _warped(trace_at_s: float, options: BenchOptions) -> tuple[float, str]:
    """Return when a request of the trace comes: inside the peak its time runs faster."""
    at_s = trace_at_s / options.time_scale
    into_peak_s = at_s - options.peak_at_s
    if options.peak_s == 0 or into_peak_s < 0:
        return at_s, "base"
    if into_peak_s < options.peak_factor * options.peak_s:
        return options.peak_at_s + into_peak_s / options.peak_factor, "peak"
    return at_s - (options.peak_factor - 1) * options.peak_s, "base"


def _poisson(options: BenchOptions) -> Iterator[tuple[float, str]]:
    """Draw exponential gaps, phase by phase."""
    source = np.random.default_rng([options.seed, _TIMES, options.run_idx])
    start_s = 0.0
    for length_s, rate, phase in _phases(options):
        at_s = start_s
        while (at_s := at_s + source.exponential(1 / rate)) < start_s + length_s:
            yield at_s, phase
        start_s += length_s


def _phases(options: BenchOptions) -> Iterator[tuple[float, float, str]]:
    """Yield (seconds, jobs/s, name): calm and burst take turns."""
    if options.arrival == "poisson":
        yield options.duration_s, options.rate, "all"
        return
    left_s = options.duration_s
    is_burst = False
    while left_s > 0:
        length_s = min(left_s, options.burst_s if is_burst else options.calm_s)
        rate = options.rate * (options.burst_factor if is_burst else 1)
        yield length_s, rate, "burst" if is_burst else "calm"
        left_s -= length_s
        is_burst = not is_burst
