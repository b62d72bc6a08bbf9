"""What is wrong with a worker is told before torch is imported, in one plain sentence."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from servers.ports import free_port

from tokenbus.engine import start_check
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import ModelNotFound, RequestRejected
from tokenbus.producer.commands import cli
from tokenbus.producer.telemetry import trace_setup
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.settings import WorkerSettings
from tokenbus.worker.start_check import check_worker

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Make a folder that looks like a model's from outside."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    return str(tmp_path)


def _check(**settings: Any) -> None:
    check_worker(WorkerSettings.load(**settings))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"device": "gpu"}, "^device: 'gpu' is not auto, cpu or cuda"),
        ({"device": "cuda:x"}, "^device: 'cuda:x'"),
        ({"device": "cpu", "kv_cache_dtype": "fp8"}, "^kv_cache_dtype: fp8 pages are for GPUs"),
        ({"device": "cpu", "num_pages": 2}, "^num_pages: 2 are too few: .* at least 10 pages"),
        ({"device": "cpu", "num_pages": 9}, "^num_pages: 9 are too few"),
        ({"device": "cpu", "page_size": 64, "num_pages": 3}, "^num_pages: 3 are too few"),
        ({"engine": "null", "num_pages": 2}, "^num_pages: 2 are too few"),
        ({"metrics_host": "192.0.2.1", "metrics_port": 9400}, "^metrics_port: 192.0.2.1"),
    ],
)
def test_setting_that_cannot_work_is_named(model: str, settings: Any, told: str) -> None:
    """The sentence begins with the setting and says what would do."""
    with pytest.raises(SettingsInvalid, match=told):
        _check(model=model, **settings)


def test_settings_that_can_work_pass(model: str) -> None:
    """Neither the least number of pages nor a text shorter than a job's default is refused."""
    _check(model=model, device="cpu", num_pages=10)
    _check(model=model, device="cpu", num_pages=3, max_model_len=32)
    _check(engine="null", num_pages=3)
    _check(model="owner/name", device="auto")


@pytest.mark.parametrize(
    "name", ["/no/such/folder", "./x.gguf", "a/b/c", "what is this", "~/none", "x\0y"]
)
def test_model_that_is_nowhere_is_not_found(name: str) -> None:
    """What is neither here nor an alias nor a possible id of a hub is refused at once."""
    with pytest.raises(ModelNotFound):
        _check(model=name, device="cpu")


def test_folder_without_weights_is_not_found(model: str, tmp_path: Path) -> None:
    """A config alone is no model, unless weights are to be drawn."""
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"no \*\.safetensors"):
        _check(model=model)
    _check(model=model, random_weights=True)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", "{", "^model: config.json of "),
        ("config.json", '{"num_hidden_layers": 9000000}', "^model: config.json gives the model"),
        ("model.safetensors.index.json", "[]", "^model: .* is not a safetensors index"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "two.safetensors"}}',
            "^model: .* lacks two.safetensors",
        ),
    ],
)
def test_folder_that_cannot_be_a_models_is_told(
    model: str, tmp_path: Path, name: str, content: str, told: str
) -> None:
    """A config that nobody can read, or a list of files that are not there, is found at once."""
    (tmp_path / name).write_text(content)
    with pytest.raises(SettingsInvalid, match=told):
        _check(model=model, device="cpu")


def test_port_of_metrics_that_is_taken_is_told() -> None:
    """A port on which somebody listens is refused, one that was just let go is not."""
    port = free_port()
    told = f"^metrics_port: 127.0.0.1:{port}: "
    with socket.create_server(("127.0.0.1", port)), pytest.raises(SettingsInvalid, match=told):
        _check(engine="null", metrics_port=port)
    _check(engine="null", metrics_port=port)


def test_library_of_traces_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector without what sends to it stops the start, with the extra to install."""
    monkeypatch.setattr(trace_setup, "_NEEDED", ("tokenbus.producer.absent",))
    with pytest.raises(SettingsInvalid, match=r"^trace_endpoint: .*tokenbus\[tracing\]"):
        _check(engine="null", trace_endpoint="http://127.0.0.1:4318/v1/traces")


@pytest.mark.parametrize(
    ("machine", "device", "told"),
    [
        ({"_torch_speaks_to_gpus": False}, "cuda", "built without CUDA"),
        ({"_loads": False}, "cuda", "no NVIDIA driver"),
        ({"_loads": True, "_num_gpus": 0}, "cuda", "has 0 GPUs"),
        ({"_loads": True, "_num_gpus": 2}, "cuda:2", "has 2 GPUs"),
        ({"_loads": True, "_num_gpus": 2, "visible": "-1"}, "cuda", "shows 0 GPUs"),
        ({"_loads": True, "_num_gpus": 2, "visible": "1"}, "cuda:1", "shows 1 GPUs"),
        ({"_loads": True, "_num_gpus": 2}, "cuda:1", None),
        ({"_loads": True, "_num_gpus": None}, "cuda:7", None),
        ({"_loads": True, "_num_gpus": 2, "visible": "0,1"}, "cuda:1", None),
    ],
)
def test_device_that_is_not_there_is_told(
    model: str, machine: dict[str, Any], device: str, told: str | None, monkeypatch: Any
) -> None:
    """Driver, number of GPUs and what is visible of them decide; in doubt torch does."""
    answers = {"_torch_speaks_to_gpus": True} | machine
    visible = answers.pop("visible", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for name, answer in answers.items():
        monkeypatch.setattr(start_check, name, lambda *_, answer=answer: answer)
    config = EngineConfig(model, device=device)
    if told is None:
        start_check.check_start(config, job_tokens=129)
    else:
        with pytest.raises(RequestRejected, match=told):
            start_check.check_start(config, job_tokens=129)


@pytest.mark.parametrize("name", ["", "a b{}", "a@b", "x" * 65, "pool\n"])
def test_name_of_a_pool_is_a_usage_error(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command that takes a pool says in one line what a name may hold, without a server."""
    for command in (["submit", "hi"], ["worker"], ["status"], ["list"], ["pause"], ["control"]):
        with pytest.raises(SystemExit) as caught:
            cli.main([*command, "--pool", name])
        assert caught.value.code == 2
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "1 to 64 of A-Z a-z 0-9 _ . -" in told


@pytest.mark.processes
def test_checks_import_no_torch(tmp_path: Path) -> None:
    """A worker that cannot start has ended before anything heavy is imported."""
    code = (
        "import sys; from tokenbus.producer.commands.cli import main\n"
        "code = main(['worker', '--model', './nope', '--redis', 'redis://127.0.0.1:1/0'])\n"
        "print(code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert run.stdout == "2 []\n"
    assert run.stderr == "tokenbus: there is no folder or file ./nope\n"
