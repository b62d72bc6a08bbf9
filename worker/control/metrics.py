"""Counters of a control process: plain numbers, read by the tests and the metrics server."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from tokenbus.producer.telemetry.histogram import Histogram


@dataclass(slots=True)
class ControlMetrics:
    """Counters since the start.

    `webhook_time` has what each try took. `webhooks` counts tries by what followed: `delivered`,
    `retried`, or dead as `gone`, `refused` or `expired`. `crons` counts ticks taken by name.
    `adapter_jobs` counts arq jobs by outcome: `finished`, `failed`, `cancelled`, `retried`;
    `adapter_running` are under way now.
    """

    webhook_time: Histogram = field(default_factory=Histogram)
    webhooks: Counter[str] = field(default_factory=Counter)
    crons: Counter[str] = field(default_factory=Counter)
    adapter_jobs: Counter[str] = field(default_factory=Counter)
    adapter_running: int = 0
