"""The manifest of the autoscaler, and what KEDA and Kubernetes make of its figures.

A stand-in for both: it reads the same file and the same figures, and decides by their rules, as
they are documented. KEDA looks every `pollingInterval` whether any trigger is active: that wakes
the first worker, and after `cooldownPeriod` without one all workers go. Between one and the most
Kubernetes decides, every 15 s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# Of Kubernetes' controller, where nothing else is said: how often it decides, how far a figure may
# be from its threshold and change nothing, and by how much it adds workers at most.
SYNC_S = 15.0
TOLERANCE = 0.1
MOST_ADDED = 4


@dataclass(frozen=True, slots=True)
class Trigger:
    """A figure and what is made of it.

    `is_of_whole` is one that is compared as it stands and scales what is there (`Value`); any other
    is a sum of which each worker has `threshold` (`AverageValue`).
    """

    query: str
    threshold: float
    activation: float
    is_of_whole: bool

    def wanted(self, value: float, replicas: int, num_ready: int) -> int:
        """Return how many workers a figure asks for."""
        share = value / self.threshold
        if not self.is_of_whole:
            share /= replicas
            num_ready = replicas
        if abs(share - 1) <= TOLERANCE:
            return replicas
        # A sum such as 0.1 + 0.2 is no reason for one more.
        return math.ceil(round(share * num_ready, 9))


@dataclass(frozen=True, slots=True)
class ScaledObject:
    """What the manifest says; times in seconds."""

    least: int
    most: int
    polling_s: float
    cooldown_s: float
    down_window_s: float
    down_pods: int
    down_period_s: float
    triggers: tuple[Trigger, ...]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a manifest. Raises: KeyError or ValueError for what the stand-in does not know."""
        spec: dict[str, Any] = yaml.safe_load(path.read_text())["spec"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        if behavior["scaleUp"] != {"stabilizationWindowSeconds": 0}:
            raise ValueError(f"{path}: scaleUp has rules that the stand-in does not know")
        (down,) = behavior["scaleDown"]["policies"]
        if down["type"] != "Pods":
            raise ValueError(f"{path}: scaleDown goes by {down['type']}")
        return cls(
            least=spec["minReplicaCount"],
            most=spec["maxReplicaCount"],
            polling_s=spec["pollingInterval"],
            cooldown_s=spec["cooldownPeriod"],
            down_window_s=behavior["scaleDown"]["stabilizationWindowSeconds"],
            down_pods=down["value"],
            down_period_s=down["periodSeconds"],
            triggers=tuple(_trigger(each) for each in spec["triggers"]),
        )


def _trigger(told: dict[str, Any]) -> Trigger:
    if told["type"] != "prometheus" or told["metadata"]["ignoreNullValues"] != "false":
        raise ValueError(f"a trigger that the stand-in does not know: {told}")
    kinds = {"Value": True, "AverageValue": False}
    return Trigger(
        query=told["metadata"]["query"],
        threshold=float(told["metadata"]["threshold"]),
        activation=float(told["metadata"]["activationThreshold"]),
        is_of_whole=kinds[told["metricType"]],
    )


@dataclass(slots=True)
class Autoscaler:
    """How many workers there should be, by what it was told last; times in seconds of any clock."""

    scaled: ScaledObject
    replicas: int = 0
    _active_at: float = -math.inf
    _wanted: list[tuple[float, int]] = field(default_factory=list)
    _removed: list[tuple[float, int]] = field(default_factory=list)

    def poll(self, now: float, values: Sequence[float | None]) -> None:
        """Wake the first worker or let the last go, as KEDA; None is a figure that did not come."""
        scaled = self.scaled
        known = [
            (trigger, value)
            for trigger, value in zip(scaled.triggers, values, strict=True)
            if value is not None
        ]
        if any(value > trigger.activation for trigger, value in known):
            self._active_at = now
            self.replicas = max(self.replicas, scaled.least, 1)
        elif len(known) == len(values) and now - self._active_at >= scaled.cooldown_s:
            self.replicas = scaled.least

    def sync(self, now: float, num_ready: int, values: Sequence[float | None]) -> None:
        """Add or remove workers between one and the most, as Kubernetes."""
        scaled = self.scaled
        asked = [
            trigger.wanted(value, self.replicas, num_ready)
            for trigger, value in zip(scaled.triggers, values, strict=True)
            if value is not None and self.replicas
        ]
        if not asked:
            return
        if None in values:
            # What was not heard lowers nothing.
            asked.append(self.replicas)
        wanted = min(max(*asked, scaled.least, 1), scaled.most)
        self._wanted = [each for each in self._wanted if now - each[0] < scaled.down_window_s]
        self._wanted.append((now, wanted))
        if wanted > self.replicas:
            self.replicas = min(wanted, self.replicas + max(MOST_ADDED, self.replicas))
            return
        self._removed = [each for each in self._removed if now - each[0] < scaled.down_period_s]
        may_go = scaled.down_pods - sum(number for _, number in self._removed)
        to_go = min(may_go, self.replicas - max(number for _, number in self._wanted))
        if to_go > 0:
            self.replicas -= to_go
            self._removed.append((now, to_go))
