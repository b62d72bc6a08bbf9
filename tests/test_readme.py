"""What the README tells a newcomer to type exists and works."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from patience import PATIENCE_S

from tokenbus.producer.commands.cli import build_parser
from tokenbus.producer.server.embedded import start_private

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^tokenbus .*$", README, re.MULTILINE)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TARGETS = sorted(set(re.findall(r"\bmake ([a-z-]+)\b", README)))


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line: str) -> None:
    """Every command line in a code block parses."""
    args = build_parser().parse_args(shlex.split(line)[1:])
    assert callable(args.run)


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
