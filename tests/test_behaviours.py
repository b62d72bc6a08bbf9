"""What the pages in docs/ claim is tested, is: every test that they name exists."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "behaviours.md").read_text().splitlines()
    if re.match(r"\| [KST]\d+ \|", line)
]


@cache
def names_of_tests() -> frozenset[str]:
    """Return the names of all test functions and of the state machines."""
    names: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names.add(node.name)
    return frozenset(names)


def test_every_behaviour_has_a_row() -> None:
    """Pages 1 to 15, scheduling 1 to 15, streams 7 to 15, each once and in order."""
    letters = {"K": range(1, 16), "S": range(1, 16), "T": range(7, 16)}
    wanted = [f"{letter}{number}" for letter in letters for number in letters[letter]]
    assert [row[0] for row in ROWS] == wanted


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_row_names_tests_that_exist(row: list[str]) -> None:
    """Each behaviour names at least one test, and no test that is not there."""
    _, behaviour, here, shown = row
    assert behaviour
    assert here
    names = re.findall(r"`(\w+)`", shown)
    assert names
    assert set(names) <= names_of_tests()


@pytest.mark.parametrize("page", ["behaviours.md", "failures.md"])
def test_tests_named_in_the_docs_exist(page: str) -> None:
    """No page of the docs names a test that was renamed or removed."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text()))
    assert named
    assert named <= names_of_tests()
