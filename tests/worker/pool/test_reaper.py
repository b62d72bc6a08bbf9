"""A worker that is lost has a line of its own, whether it held jobs or none."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import structlog
from servers.fixtures import pool, redis_url, scripts, server
from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.worker import logs
from tokenbus.worker.metrics import Metrics
from tokenbus.worker.pool.reaper import Reaper
from tokenbus.worker.session import Session

if TYPE_CHECKING:
    import pytest

    from tokenbus.producer.scripts import Scripts

__all__ = ["pool", "redis_url", "scripts", "server"]


async def test_lost_worker_has_a_line_of_its_own(
    scripts: Scripts, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is told once, before its jobs are; one that took its leave is not lost."""
    before = structlog.get_config()
    logs.configure("info", "json")
    full, idle, left = (StubWorker(scripts, name) for name in ("full", "idle", "left"))
    for worker in (full, idle, left):
        await worker.reconcile()
    await submit(scripts, a_job("one"), a_job("two"))
    await full.pull()
    await scripts.lease.leave("left")
    for worker in (full, idle, left):
        await raw(scripts).delete(scripts.keys.of("alive", worker.name))
    session = Session(scripts.redis, 5.0)
    session.open()
    member: Any = SimpleNamespace(
        session=session,
        scripts=scripts,
        completion=SimpleNamespace(reap=_reap),
        worker="me",
        settings=SimpleNamespace(lease_ttl_s=5.0, dead_letter_bytes=1 << 20),
        metrics=Metrics(),
    )
    reaper = Reaper(member)
    try:
        await reaper._reap()
        await reaper._reap()
    finally:
        structlog.configure(**before)
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    lost = [line for line in lines if line["event"] == "worker.lost"]
    assert {line["dead_worker"]: line["jobs"] for line in lost} == {"full": 2, "idle": 0}
    assert len(lost) == 2
    assert lines[: len(lost)] == lost


async def _reap(*_: object) -> None:
    """Leave the job where it is, as if another had been faster."""
