"""The end of a group: it is let go of before what it needs, whoever still holds it."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.engine_of_ranks import engine, saved
from models.rank_threads import ThreadFollower, follow_in_threads
from patience import PATIENCE_S

from tokenbus.engine.parallel.collective import GlooGroup, NcclGroup
from tokenbus.engine.parallel.group_memory import GroupMemory, open_memory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tokenbus.engine.engine import Engine

# Builds an engine of two ranks in a process of its own, and ends without a word to it.
_SCRIPT = """
import os, signal, sys, tempfile
from tokenbus.engine.llm import LLM
from tokenbus.engine.parallel.collective import GlooGroup
GlooGroup.close = lambda group: print("let go", flush=True)
llm = LLM(sys.argv[1], dtype="float32", device="cpu", num_pages=80, tensor_parallel=2)
print(tempfile.gettempdir(), flush=True)
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


class _Graph:
    """A graph that holds launches."""

    def __init__(self, held: set[object]) -> None:
        self._held = held
        held.add(self)

    def reset(self) -> None:
        """Hold none."""
        self._held.discard(self)


class _Nccl:
    """A process group that waits at its end for graphs, as NCCL does, and the device of it."""

    def __init__(self) -> None:
        self.held: set[object] = set()
        self.is_stuck, self.device_is_stuck, self.goes_on = False, False, Event()

    def abort(self) -> None:
        """End, once no graph holds a launch."""
        if self.held or self.is_stuck or self.device_is_stuck:
            self.goes_on.wait()

    def record(self, stream: object) -> None:
        """Be an event of the device."""

    def query(self) -> bool:
        """Tell whether the device has ended what it was given."""
        return not self.device_is_stuck


@pytest.fixture
def nccl(monkeypatch: pytest.MonkeyPatch) -> _Nccl:
    """Take graphs of `held` for those of CUDA, and events for its own."""
    made = _Nccl()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: _Graph(made.held))
    monkeypatch.setattr(torch.cuda, "Event", lambda: made)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: None)
    return made


def group_of(nccl: Any) -> NcclGroup:
    """Return rank 0 of a group of two."""

    def cause(error: Exception) -> Exception:
        return error

    return NcclGroup(nccl, GroupMemory(open_memory(), 0, 2), cause, torch.device("cuda", 0))


def test_nccl_is_let_go_of_once_no_graph_holds_it(nccl: _Nccl) -> None:
    """A closed group has ended, though its runner still has the graphs."""
    group = group_of(nccl)
    graphs = [group.new_graph() for _ in range(3)]
    assert len(nccl.held) == 3
    group.close()
    assert not group._end.is_alive()
    assert len(graphs) == 3


def test_device_that_does_not_end_is_not_waited_for(
    nccl: _Nccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that never comes holds nobody up for long."""
    monkeypatch.setattr("tokenbus.engine.parallel.collective._ABORT_S", 0.01)
    group, nccl.is_stuck = group_of(nccl), True
    group.close()
    assert group._end.is_alive()
    nccl.goes_on.set()
    group._end.join(PATIENCE_S)


def test_device_that_waits_for_a_lost_rank_is_left_alone(
    nccl: _Nccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither graphs nor NCCL are ended, now or with the interpreter: both would wait for it."""
    monkeypatch.setattr("tokenbus.engine.parallel.collective._DEVICE_S", 0.01)
    group, nccl.device_is_stuck = group_of(nccl), True
    graph: Any = group.new_graph()
    before = sys.getrefcount(graph), sys.getrefcount(nccl)
    group.close()
    assert not group._end.is_alive()
    assert len(nccl.held) == 1
    del group
    after = sys.getrefcount(graph), sys.getrefcount(nccl)
    # The group's own are gone.
    assert after == before


def closed(built: Engine) -> None:
    """Close an engine."""
    built.close()
    built.close()


def dropped(built: Engine) -> None:
    """Forget an engine."""
    del built
    gc.collect()


@pytest.mark.parametrize("end", [closed, dropped])
def test_group_is_let_go_of_before_its_ranks(
    end: Callable[[Engine], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is let go of once, while the others are still there."""
    seen: list[bool] = []
    followers: list[ThreadFollower] = []
    follow_in_threads(monkeypatch)
    monkeypatch.setattr(GlooGroup, "close", lambda _: seen.append(followers[0].is_alive))
    engines: list[Any] = [engine(saved(tmp_path, "qwen3"), 2)]
    followers += engines[0]._runner.group._processes
    end(engines.pop())
    assert seen == [True]
    assert not followers[0].is_alive


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize(
    ("end", "status", "told"), [("", 0, ["let go"]), ("killed", -signal.SIGKILL, [])]
)
def test_script_that_closes_nothing_leaves_nothing(
    tmp_path: Path, end: str, status: int, told: list[str]
) -> None:
    """Its end lets go of the group; no file of that is left, not even where it is killed."""
    files = tmp_path / "files"
    files.mkdir()
    command = [sys.executable, "-P", "-c", _SCRIPT, saved(tmp_path / "model", "qwen3"), end]
    ended = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S,
        env={**os.environ, "TMPDIR": str(files)},
    )  # fmt: skip
    assert ended.returncode == status
    assert ended.stdout.splitlines() == [str(files), *told]
    assert not list(files.glob("tokenbus*"))
