"""What README and docs tell a newcomer to type exists and works, from an empty home and cache.

Every shell block of the pages is run as it stands, or is listed here with the reason why not.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from house.shell import Block, Newcomer, blocks
from patience import PATIENCE_S

from tokenbus.producer.commands.cli import build_parser
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONTROL = (ROOT / "docs" / "control.md").read_text()
BLOCKS = blocks()
COMMANDS = sorted({line for block in BLOCKS for line in block.lines if "tokenbus " in line})
# Blocks that are not run, by how they begin.
NOT_RUN = {
    "make demo": "sets up an environment of 1 GB; tests/worker/demo/test_demo.py drives the demo",
    'pip install "tokenbus[gateway]"': "installs; tests/producer/gateway/ runs the command",
    "tokenbus worker --engine null --redis redis://127.0.0.1:6390/0": (
        "tests/deploy/test_newcomer.py types all of docs/incidents.md"
    ),
    "tokenbus dead list --redis redis://127.0.0.1:6390/0": "as the line before",
    "tokenbus keys create": "tests/producer/gateway/test_keys.py makes, lists and revokes keys",
    "pip install .": "installs into an environment; tests/test_packaging.py installs the wheel",
    "docker compose": "needs containers; tests/deploy/test_compose.py runs what is in them",
    "make chaos": "takes ten minutes, and runs tests",
    "PYTHONPATH=tests/support .venv/bin/python": "is a part of make chaos",
    "tokenbus bench pool --arrival at-once": "is for 16 cores",
    "tokenbus bench gateway": "takes minutes; tests/worker/bench/test_gateway_bench.py runs it",
    "TOKENBUS_PUBLISHERS=4 tokenbus bench": "is for 16 cores",
    "TOKENBUS_PUBLISHERS=1 tokenbus bench": "is for 16 cores",
    "tokenbus bench pool --model smollm2-135m --trace": "needs a trace that is not ours to give",
}
# Those that are, whole: with a worker that makes tokens up, and slowly with the model.
QUICK_START = "tokenbus worker --model smollm2-135m"
CONTROLS = "tokenbus control --redis"
BENCH = "tokenbus bench pool --users 64"
# tests/test_serve.py types it, and goes on from there.
SERVE = "tokenbus serve smollm2-135m"
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TARGETS = sorted(set(re.findall(r"\bmake ([a-z-]+)\b", README)))


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line: str) -> None:
    """Every command line in a code block parses."""
    words = shlex.split(line)
    args, rest = build_parser().parse_known_args(words[words.index("tokenbus") + 1 :])
    assert callable(args.run)
    assert getattr(args, "takes_rest", False) or not rest


def test_every_block_is_run_or_has_its_reason() -> None:
    """No shell block of the pages is left out in silence, and no reason outlives its block."""
    begun = {
        begin: [block for block in BLOCKS if block.lines[0].startswith(begin)]
        for begin in (QUICK_START, CONTROLS, BENCH, SERVE, *NOT_RUN)
    }
    assert all(begun.values())
    assert {id(block) for found in begun.values() for block in found} == set(map(id, BLOCKS))


def _block(begin: str, page: str = "README.md") -> Block:
    return next(b for b in BLOCKS if b.page == page and b.lines[0].startswith(begin))


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    """Give a shell with an empty home; what the pages name by example lies there or is near."""
    server = start_private()
    home = tmp_path / "home"
    given = {"/tmp/bus": str(home / "bus")} | dict.fromkeys(  # noqa: S108
        ("redis://127.0.0.1:6379/0", "redis://valkey:6379/0"), server.url
    )
    with Newcomer(home, given) as arrived:
        yield arrived
    server.close()


@pytest.mark.processes
def test_quick_start_works_from_an_empty_home(newcomer: Newcomer) -> None:
    """Worker, question and status, copied from the README; the worker makes its tokens up."""
    newcomer.variables["TOKENBUS_ENGINE"] = "null"
    _worker, answer, status = map(newcomer.type, _block(QUICK_START).lines)
    assert len(answer.split()) > 10
    assert "jobs at 1 workers" in status
    newcomer.stop()


@pytest.mark.slow
@pytest.mark.processes
def test_quick_start_fetches_its_model(newcomer: Newcomer) -> None:
    """The same with the model that it names: fetched with progress, told phase by phase."""
    started, answer, _status = map(newcomer.type, _block(QUICK_START).lines)
    assert "downloading" in started
    assert started.index("converting") < started.index("loading torch")
    assert "no worker" not in answer
    newcomer.stop()


@pytest.mark.slow
@pytest.mark.processes
def test_bench_of_the_page_runs(newcomer: Newcomer) -> None:
    """The first command of the page on benches ends with its table."""
    [line] = _block(BENCH, "docs/bench.md").lines
    assert "TTFT" in newcomer.type(line)


@pytest.mark.processes
@pytest.mark.parametrize("page", ["README.md", "docs/control.md"])
def test_control_service_starts_with_the_files_of_the_page(newcomer: Newcomer, page: str) -> None:
    """Keys and crons, copied from the page, are taken; the service and its check work."""
    [key] = re.findall(r"keys\.json is\s`({.*?})`", CONTROL)
    [table] = re.findall(r"^```toml\n(.*?)^```$", CONTROL, re.MULTILINE | re.DOTALL)
    (newcomer.home / "keys.json").write_text(key)
    (newcomer.home / "crons.toml").write_text(table)
    (newcomer.home / "products.jsonl").write_text('{"prompt": "A tent:"}\n')
    said = [newcomer.type(line) for line in _block(CONTROLS, page).lines]
    assert len(said) == 2
    newcomer.stop()


@pytest.mark.parametrize("target", TARGETS)
def test_target_is_in_the_makefile(target: str) -> None:
    """Every make target that is named exists."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_extras_are_those_of_the_package() -> None:
    """The extras that are named can be installed."""
    project = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"\.\[(\w+)\]", README):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def test_python_example_streams_an_answer() -> None:
    """The example runs as it stands against a worker."""
    assert len(PYTHON) == 1
    server = start_private()
    environment = os.environ | {"TOKENBUS_REDIS_URL": server.url}
    worker = [
        sys.executable,
        "-P",
        "-m",
        "tokenbus.producer.commands.cli",
        "worker",
        "--engine",
        "null",
    ]
    try:
        with subprocess.Popen(worker, env=environment, stderr=subprocess.DEVNULL) as process:
            run = subprocess.run(
                [sys.executable, "-P", "-c", PYTHON[0]],
                env=environment, capture_output=True, text=True, timeout=PATIENCE_S,
            )  # fmt: skip
            process.kill()
    finally:
        server.close()
    assert run.returncode == 0, run.stderr
    assert "completion_tokens=64" in run.stdout
    assert run.stdout.count("JobResult(") == 2
