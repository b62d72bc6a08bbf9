"""A device that waits for a rank which will not come is told from one that is slow."""

from __future__ import annotations

from typing import Any

import pytest

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import RankLost
from tokenbus.engine.parallel import leading
from tokenbus.engine.parallel.group_memory import GroupMemory
from tokenbus.engine.parallel.leading import LeadingGroup
from tokenbus.engine.parallel.watch import SILENT_S
from tokenbus.engine.sampling.plan import SamplingPlan
from tokenbus.engine.scheduling.plan import StepPlan

# Of the followers of three ranks, those that have launched all that they were told.
BOTH, ONE = {1, 2}, {1}


class _Device:
    """A device with a clock of its own, which a question moves by a second; an event on it."""

    def __init__(self, needs_s: float) -> None:
        self._needs_s = needs_s
        self.now_s = 0.0

    def query(self) -> bool:
        """Tell whether the event has come."""
        self.now_s += 1
        return self.now_s >= self._needs_s

    def monotonic(self) -> float:
        """Return the time in seconds."""
        return self.now_s

    def sleep(self, _: float) -> None:
        """Take no time."""


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> LeadingGroup:
    """Return rank 0 of three, whose followers are no processes."""
    monkeypatch.setattr(LeadingGroup, "_spawn", lambda *_: None)
    return LeadingGroup(EngineConfig("any", tensor_parallel=3))


def wait(
    group: LeadingGroup, asleep: set[int], needs_s: float, patch: pytest.MonkeyPatch
) -> _Device:
    """Wait for a device that needs so many seconds; return it."""
    device = _Device(needs_s)
    waited_for: Any = device
    patch.setattr(GroupMemory, "is_asleep", lambda _, rank: rank in asleep)
    patch.setattr(leading, "time", device)
    try:
        group.wait(waited_for)
    finally:
        group.close()
    return device


def test_device_is_waited_for_while_a_rank_still_launches(
    group: LeadingGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that compiles or captures comes to its collectives as late as it likes."""
    device = wait(group, ONE, 600, monkeypatch)
    assert device.now_s == 600


def test_device_that_waits_for_nobody_is_lost(
    group: LeadingGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ranks have launched their part, and nothing comes of it for as long as a step takes."""
    with pytest.raises(RankLost, match=f"rank 0 waits for its device, for {SILENT_S:g} s"):
        wait(group, BOTH, 600, monkeypatch)


def test_step_with_a_long_prompt_may_take_longer(
    group: LeadingGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step may take a millisecond of device time for each of its prompt tokens beside that."""
    monkeypatch.setattr(StepPlan, "num_prefill_tokens", 20_000)
    monkeypatch.setattr(group._book, "order", lambda *_, **__: b"")
    monkeypatch.setattr(group._shared, "publish", lambda *_: None)
    with group.step(StepPlan(), SamplingPlan()):
        pass
    device = wait(group, BOTH, SILENT_S + 19, monkeypatch)
    assert device.now_s == SILENT_S + 19
