"""Ranks as processes: they start together, a loss is told as such, and all end together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from models.engine_of_ranks import GREEDY, answers, asked, engine, saved
from patience import PATIENCE_S

from tokenbus.engine.errors import ModelBroken, RankLost
from tokenbus.engine.parallel import watch
from tokenbus.engine.parallel.leading import LeadingGroup
from tokenbus.engine.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.processes

# Builds an engine of two ranks in a process of its own, tells its pid's followers, and generates.
_RANK_ZERO = """
import sys
from tokenbus.engine.build import build_engine
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.types import Request, SamplingParams
engine = build_engine(EngineConfig(
    sys.argv[1], dtype="float32", device="cpu", num_pages=80, num_threads=1, tensor_parallel=2))
print(*(child.pid for child in engine._runner.group._processes), flush=True)
engine.add(Request(0, (3, 4), SamplingParams(max_tokens=900, ignore_eos=True)))
while engine.has_work:
    engine.step()
"""


def is_alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    gives_up_at = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < gives_up_at
        time.sleep(0.02)


def drain(built: Any) -> None:
    """Step an engine until it raises."""
    while True:
        built.step()
        built.check_ranks()


def followers_of(built: Any) -> list[int]:
    """Return the pids of an engine's followers."""
    return [process.pid for process in built._runner.group._processes]


def test_two_processes_answer_like_one_and_leave_nothing(tmp_path: Path) -> None:
    """A start, answers and a close: tokens of one rank, and no process after it."""
    model = saved(tmp_path, "qwen3")
    expected = answers(engine(model), asked())
    built = engine(model, 2)
    pids = followers_of(built)
    assert answers(built, asked()) == expected
    assert not any(map(is_alive, pids))


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_lost_follower_is_told_with_its_rank(sent: signal.Signals, tmp_path: Path) -> None:
    """A follower that is killed or stopped amid work ends the step as RankLost within seconds."""
    built = engine(saved(tmp_path, "qwen3"), 2)
    (pid,) = followers_of(built)
    built.add(Request(0, (3, 4), GREEDY))
    built.step()
    os.kill(pid, sent)
    began_at = time.monotonic()
    with pytest.raises(RankLost, match="rank 1") as lost:
        drain(built)
    assert lost.value.rank == 1
    assert time.monotonic() - began_at < watch.SILENT_S + PATIENCE_S
    with pytest.raises(RankLost):
        built.step()
    built.close()
    assert not is_alive(pid)


@pytest.mark.slow
def test_followers_end_with_a_killed_rank_zero(tmp_path: Path) -> None:
    """SIGKILL of rank 0 leaves no process behind."""
    command = [sys.executable, "-P", "-c", _RANK_ZERO, saved(tmp_path, "qwen3")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert pids
        process.kill()
    until(lambda: not any(map(is_alive, pids)))


@pytest.mark.slow
def test_rank_that_cannot_load_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A follower that fails ends the start with its own error; all others end too."""
    plain = LeadingGroup.meet
    spawned: list[int] = []

    def meet(group: LeadingGroup, device: Any) -> None:
        plain(group, device)
        spawned.extend(group.follower_pids)

    # Rank 0 reads the model that is whole, its follower one of which half is missing.
    model, half = Path(saved(tmp_path / "whole", "qwen3")), tmp_path / "half"
    half.mkdir()
    for file in model.iterdir():
        content = file.read_bytes()
        (half / file.name).write_bytes(content[:2000] if file.suffix == ".safetensors" else content)
    monkeypatch.setattr(LeadingGroup, "meet", meet)
    monkeypatch.setattr(
        "tokenbus.engine.parallel.leading.asdict",
        lambda config: {
            **{name: getattr(config, name) for name in config.__dataclass_fields__},
            "model": str(half),
        },
    )
    with pytest.raises(ModelBroken, match=r"rank 1: .*cannot be read"):
        engine(str(model), 2)
    assert spawned
    assert not any(map(is_alive, spawned))
