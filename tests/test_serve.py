"""`tokenbus serve`: from nothing to an endpoint, over dead parts, and back to nothing."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from importlib import util
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from house.shell import Newcomer, blocks
from patience import PATIENCE_S
from servers.ports import free_port

from tokenbus.producer.commands import cli
from tokenbus.producer.serving.endpoint import Endpoint

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from tokenbus.producer.serving.served_child import ChildCommand

COMMAND = [sys.executable, "-P", "-m", "tokenbus.producer.commands.cli"]


class Serving:
    """`tokenbus serve` that was typed into a shell, from its address on."""

    def __init__(self, newcomer: Newcomer, line: str) -> None:
        self._newcomer = newcomer
        self.said = newcomer.type(line)
        self.process = newcomer.last
        [self.url] = re.findall(r"^(\S+)/v1 serves", self.said, re.MULTILINE)

    def read_until(self, pattern: str) -> str:
        """Return the next line in which a pattern is found."""
        assert self.process.stdout
        said = []
        for line in self.process.stdout:
            if re.search(pattern, line):
                return line
            said.append(line)
        raise AssertionError(f"{pattern} was not said, but:\n{''.join(said)}")

    def parts(self) -> list[psutil.Process]:
        """Return all processes that run for it: children, and the server in its folder."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        known = {process.pid for process in found}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if str(self._newcomer.home) in words and process.pid not in known:
                    found.append(process)
        return [process for process in found if process.pid != self.process.pid]

    def part(self, name: str) -> psutil.Process:
        """Return the process that runs one of the commands."""
        [found] = [
            process
            for process in psutil.Process(self.process.pid).children()
            if name in process.cmdline()
        ]
        return found


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    """Give a shell with an empty home, a port that is free and an engine that makes tokens up."""
    port = str(free_port())
    variables = {"TOKENBUS_ENGINE": "null", "TOKENBUS_GATEWAY_PORT": port}
    given = {"127.0.0.1:8000": f"127.0.0.1:{port}"}
    with Newcomer(tmp_path / "home", given, variables) as arrived:
        yield arrived


def _gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    return not alive


def _lines() -> tuple[str, str]:
    """Return the two lines of the README: one that serves, and one that asks."""
    [block] = [
        block
        for block in blocks()
        if block.page == "README.md" and block.lines[0].startswith("tokenbus serve")
    ]
    serve, ask = block.lines
    return serve, f"{ask} --silent"


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("curl") is None, reason="a line of the page is curl's")
def test_lines_of_the_readme_serve_and_ask(newcomer: Newcomer) -> None:
    """From an empty home to an answer; SIGTERM ends all parts in order, and none is left."""
    serve, ask = _lines()
    serving = Serving(newcomer, serve)
    assert json.loads(newcomer.type(ask))["choices"][0]["message"]["content"]
    parts = serving.parts()
    assert len(parts) >= 4
    serving.process.send_signal(signal.SIGTERM)
    serving.read_until("stopped")
    assert serving.process.wait(PATIENCE_S) == 0
    assert _gone(parts)


@pytest.mark.slow
@pytest.mark.processes
def test_serve_outlives_its_parts(newcomer: Newcomer) -> None:
    """A worker and a gateway that are killed come back, and the printed lines work then."""
    serving = Serving(newcomer, _lines()[0])
    curl, python = serving.read_until(r"^curl "), serving.read_until(r" -c ")
    for name in ("worker", "gateway"):
        serving.part(name).kill()
        assert "SIGKILL" in serving.read_until(f"{name} ended with")
        serving.read_until(f"{name}: ready")
    for line in (curl, python):
        said = newcomer.type(line.strip())
        assert said.strip()
        assert '"error"' not in said
    serving.process.send_signal(signal.SIGINT)
    assert serving.process.wait(PATIENCE_S) == 0


@pytest.mark.slow
@pytest.mark.processes
def test_killed_serve_takes_its_parts_with_it(newcomer: Newcomer) -> None:
    """SIGKILL of the command leaves no worker, gateway or server behind."""
    serving = Serving(newcomer, _lines()[0])
    parts = serving.parts()
    serving.process.kill()
    assert _gone(parts)


@pytest.mark.slow
@pytest.mark.processes
def test_serve_fetches_its_model_and_answers(newcomer: Newcomer) -> None:
    """From nothing to an answer of the model that the README names, its phases told."""
    del newcomer.variables["TOKENBUS_ENGINE"]
    serve, ask = _lines()
    serving = Serving(newcomer, serve)
    for phase in ("downloading", "converting", "loading torch"):
        assert phase in serving.said
    assert json.loads(newcomer.type(ask))["usage"]["completion_tokens"]
    newcomer.stop()


@pytest.mark.slow
@pytest.mark.processes
def test_model_that_is_not_there_is_the_reason(tmp_path: Path) -> None:
    """What the worker cannot use ends the whole in one sentence, with the code of wrong input."""
    words = ["serve", "./no-such-folder", "--port", "0", "--dtype", "float32"]
    run = subprocess.run(
        [*COMMAND, *words],
        capture_output=True, text=True, timeout=PATIENCE_S,
        env=os.environ | {"TOKENBUS_CACHE": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 2
    last = run.stderr.splitlines()[-1]
    assert re.match(r"tokenbus: worker ended with code 2: .*no-such-folder", last)


@pytest.mark.parametrize("name", ["torch", "structlog", "fastapi", "uvicorn"])
def test_missing_library_is_told_before_anything_starts(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence has the line that installs both extras."""
    found = util.find_spec
    monkeypatch.setattr(
        "tokenbus.producer.commands.serve.find_spec",
        lambda asked: None if asked == name else found(asked),
    )
    assert cli.main(["serve"]) == 2
    told = f"tokenbus: this command needs {name}: pip install 'tokenbus[worker,gateway]'\n"
    assert capsys.readouterr().err == told


def test_taken_port_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    """A port that somebody listens on is told before anything starts."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "in use" in capsys.readouterr().err


def test_options_reach_the_parts_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options of worker and gateway go to them as they were given, keys by the environment."""
    seen: dict[str, list[str]] = {}

    def note(_: object, *, workers: dict[str, ChildCommand], gateway: list[str], **__: Any) -> int:
        seen.update(gateway=gateway, worker=[*workers["worker"].words])
        return 0

    monkeypatch.setattr("tokenbus.producer.commands.serve.run_serve", note)
    given = (
        "serve m --port 1 --host 127.0.0.2 --served-model-name a --served-model-name b"
        " --dtype bfloat16 --max-num-seqs 7 --log-level debug --strict --alias x=a"
        " --fallback a=b,c --api-key k1 --api-key k2 --api-key-role viewer --redis redis://:secret@127.0.0.1:1/0"
    )
    assert cli.main(given.split()) == 0
    worker, gateway = seen["worker"], seen["gateway"]
    assert {"--served-model-name=a", "--served-model-name=b", "--dtype=bfloat16"} < set(worker)
    assert {"--max-num-seqs=7", "--log-level=debug"} < set(worker)
    assert not {"--port=1", "--model=m"} & set(worker)
    assert {"--port=1", "--host=127.0.0.2", "--strict", "--alias=x=a"} < set(gateway)
    assert {"--fallback=a=b,c", "--log-level=debug"} < set(gateway)
    assert "--api-key-role=viewer" in gateway
    assert "secret" not in " ".join([*worker, *gateway])
    # What serve says itself: names of the pool, and keys where not everyone can read them.
    assert not [word for word in gateway if word.startswith(("--served-model-name", "--api-key="))]


def test_model_behind_options_is_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option takes one value each time, so that a model may stand behind it."""
    models: list[str] = []

    def note(args: argparse.Namespace, **_: Any) -> int:
        models.append(args.model)
        return 0

    monkeypatch.setattr("tokenbus.producer.commands.serve.run_serve", note)
    for option in ("--api-key", "--cors-origin", "--served-model-name"):
        assert cli.main(["serve", option, "a-value-of-its-own", "/models/llama"]) == 0
    assert models == ["/models/llama"] * 3


def test_lines_of_an_endpoint_with_a_key_hide_it() -> None:
    """The lines name a variable in place of the key, and an address that can be reached."""
    endpoint = Endpoint("0.0.0.0", 80, "a'model", has_key=True)  # noqa: S104 - it is shown
    for line in (endpoint.curl_line(), endpoint.python_line()):
        assert "http://127.0.0.1:80/v1" in line
        assert "TOKENBUS_API_KEY" in line
    assert Endpoint("::1", 80, "m").url == "http://[::1]:80"
