"""The life of a worker: its phase, told once when it changes, and to probes at any moment."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from structlog.testing import CapturingLogger

from tokenbus.producer.client.worker_status import WorkerPhase
from tokenbus.worker import life
from tokenbus.worker.life import WorkerLife

if TYPE_CHECKING:
    import pytest


async def test_each_change_of_phase_is_logged_once() -> None:
    """From starting over ready, down and ready to draining: a line each, with what was before."""
    is_up = True
    told = WorkerLife(lambda *_: None)
    logged: Any = CapturingLogger()
    told._log = logged
    told.starts("reading weights", 40, 3)
    assert told.answer()["told"] == "reading weights"
    told.ready(lambda: is_up)
    turning = asyncio.create_task(told.run())
    await asyncio.sleep(0)
    is_up = False
    assert (told.phase, told.is_ready) == (WorkerPhase.DOWN, False)
    turning.cancel()
    turning = asyncio.create_task(told.run())
    await asyncio.sleep(0)
    is_up = True
    turning.cancel()
    turning = asyncio.create_task(told.run())
    await asyncio.sleep(0)
    turning.cancel()
    told.drains()
    told.drains()
    phases = [(call.kwargs["was"], call.kwargs["phase"]) for call in logged.calls]
    assert {call.args for call in logged.calls} == {("worker.phase",)}
    assert phases == [
        ("starting", "ready"),
        ("ready", "down"),
        ("down", "ready"),
        ("ready", "draining"),
    ]


def test_loop_that_stands_still_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose loop has not turned for long needs a restart; that is what a probe learns."""
    told = WorkerLife(lambda *_: None)
    assert not told.is_stuck
    monkeypatch.setattr(life, "STUCK_AFTER_S", -1.0)
    assert told.is_stuck
