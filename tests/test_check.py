"""`make check` runs what starts no process, and says so of a test that does."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from house.modules import parsed
from matrix import mix_files
from patience import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent
PLANTED = """
import subprocess
import pytest

@pytest.fixture
def server():
    return subprocess.run(["true"], check=True)

def test_with_a_server(server): ...

@pytest.mark.processes
def test_with_the_mark():
    subprocess.run(["true"], check=True)

def test_without_the_mark():
    subprocess.run(["true"], check=True)

def test_that_starts_nothing(): ...
"""


def _run(folder: Path, *args: str) -> str:
    path = filter(None, (str(ROOT / "tests" / "support"), os.environ.get("PYTHONPATH")))
    run = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider",
         "-o", "markers=processes: starts processes", "--rootdir", str(folder), *args],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
    )  # fmt: skip
    return run.stdout


@pytest.mark.processes
def test_process_without_the_mark_is_told(tmp_path: Path) -> None:
    """Left out are tests with a server's fixture or the mark; any other may start no process."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_planted.py").write_text(PLANTED)
    told = _run(tmp_path, "-m", "not processes")
    outcomes = dict(re.findall(r"^(PASSED|FAILED) test_planted.py::(\w+)", told, re.MULTILINE))
    assert outcomes == {
        "PASSED": "test_that_starts_nothing",
        "FAILED": "test_without_the_mark",
    }
    assert "mark it `pytest.mark.processes`" in told
    assert "4 passed" in _run(tmp_path)


def test_files_that_wait_come_between_those_that_compute() -> None:
    """Neither kind is left for the end, files that wait still less, and a file stays together."""
    kinds = {name: name < "e" for name in "abcdefghijkl"}
    tests = [
        SimpleNamespace(path=name, number=number, get_closest_marker=lambda _, waits=waits: waits)
        for name, waits in kinds.items()
        for number in range(2)
    ]
    items: Any = [*tests]
    mix_files(items, "processes")
    assert [(item.path, item.number) for item in items[::2]] == [
        (name, 0) for name in "aefbghcidjkl"
    ]
    assert [(item.path, item.number) for item in items[1::2]] == [(i.path, 1) for i in items[::2]]


def test_check_names_what_exists() -> None:
    """What is moved is not silently left out."""
    tree = parsed((ROOT / "tests" / "check.py").read_text())
    lists = {
        ast.unparse(node.targets[0]): ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
    }
    named = (*lists["FOLDERS"], *lists["PAGES"])
    assert named
    assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


def test_continuous_integration_lints_before_it_tests() -> None:
    """`.ci/run` asks ruff and the types of the packages, then becomes `make test`."""
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert lines.index("make lint-packages") < lines.index("exec make test")
    makefile = (ROOT / "Makefile").read_text()
    recipe = makefile.partition("\nlint-packages:")[2].partition("\n\n")[0]
    assert all(part in recipe for part in ("ruff check", "ruff format", "typecheck.py packages"))
