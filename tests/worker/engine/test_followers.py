"""The ranks of an engine: the group ends with each of them, and nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from models.tiny_model import TinyModel
from patience import PATIENCE_S, until_within
from workers.linked_engine import Engine
from workers.stem import forked_children

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.types import Request, SamplingParams
from tokenbus.worker.engine.followers import Followers
from tokenbus.worker.errors import DeathCause
from tokenbus.worker.messages.engine import AddRequest, StartEngine

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.processes

_SLEEPER = [sys.executable, "-S", "-E", "-c", "import time; time.sleep(3600)"]
# What a group may take to end, whatever happens to one of its ranks.
LIMIT_S = 5.0


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="handles of processes are Linux's")
def test_followers_are_killed_and_waited_for() -> None:
    """Also one that a signal has stopped; what has ended before is nobody's loss."""
    sleepers = [subprocess.Popen(_SLEEPER) for _ in range(2)]
    sleepers[0].send_signal(signal.SIGSTOP)

    async def end_all() -> None:
        followers = Followers()
        followers.watch(sleeper.pid for sleeper in sleepers)
        await followers.end(PATIENCE_S)
        await followers.end(PATIENCE_S)

    for _ in range(2):
        asyncio.run(end_all())
        for sleeper in sleepers:
            assert os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    assert [sleeper.wait() for sleeper in sleepers] == 2 * [-signal.SIGKILL]


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
async def test_group_ends_with_its_follower(tmp_path: Path, number: signal.Signals) -> None:
    """Amid decode, a rank that is killed or stopped ends all of it, with the rank's number."""
    model = TinyModel(tmp_path)
    config = EngineConfig(
        str(model.folder), device="cpu", dtype="float32", num_pages=80, tensor_parallel=2,
        num_threads=1,
    )  # fmt: skip
    engine = Engine(StartEngine.of(config))
    try:
        with forked_children():
            ready = await engine.link.start(PATIENCE_S)
        assert ready.topology == "2 ranks on the CPU; threads of each: 1"
        [follower] = ready.follower_pids
        engine.link.send(AddRequest(Request(1, (1, 2, 3), SamplingParams(max_tokens=1000))))
        await engine.until(lambda: len(engine.tokens(1)) > 4)
        os.kill(follower, number)
        await until_within(lambda: not engine.link.is_alive, LIMIT_S)
        died = await engine.link.wait_died()
        assert died.cause is DeathCause.RANK
        told = {signal.SIGKILL: "was killed by SIGKILL", signal.SIGSTOP: "has not answered"}
        assert f"rank 1 {told[number]}" in str(died)
    finally:
        await engine.link.kill()
    assert _has_ended(follower)
