"""What the pages say of the code is so: the rules, words, states, rooms, files and tests named."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import pytest
from house.modules import PACKAGES, ROOT, Tree
from house.pages import floor_rows, package_rows, room_rows

from tokenbus.producer.scripts import replies
from tokenbus.worker.held import held_job
from tokenbus.worker.publishing import log_states

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from enum import Enum
    from pathlib import Path

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
GLOSSARY = (ROOT / "docs" / "words.md").read_text()
WORDS = re.findall(r"^\| \*\*(.+?)\*\* \| .+ \|$", GLOSSARY, re.MULTILINE)
BEHAVIOURS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "behaviours.md").read_text().splitlines()
    if re.match(r"\| [KST]\d+ \|", line)
]
SOURCES = (".py", ".lua", ".h", ".cpp")


def _files(*folders: str) -> list[Path]:
    """Return the sources below folders of the repository."""
    paths = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    return sorted(path for path in paths if path.suffix in SOURCES)


@cache
def names_of_tests() -> frozenset[str]:
    """Return the names of all test functions and of the state machines."""
    definition = re.compile(r"^\s*(?:async )?(?:def|class) (\w+)", re.MULTILINE)
    paths = (ROOT / "tests").rglob("test_*.py")
    return frozenset(name for path in paths for name in definition.findall(path.read_text()))


def _cited(text: str) -> set[int]:
    """Return the numbers of the rules that a text names, ranges included."""
    found = {int(number) for number in re.findall(r"\bR([1-9]\d?)\b", text)}
    for first, last in re.findall(r"\bR([1-9]\d?) to R([1-9]\d?)\b", text):
        found |= set(range(int(first), int(last) + 1))
    return found


def _rules() -> dict[int, str]:
    """Return the rules that the protocol states, each with its text."""
    stated = PROTOCOL.partition("\n## What the log answers")[0]
    parts = re.split(r"^\*\*R(\d+)\. ", stated, flags=re.MULTILINE)
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_rule_that_the_source_cites_is_stated() -> None:
    """Whoever reads `(R7)` in the code finds R7 in the protocol, and none is missing between."""
    stated = _rules()
    assert sorted(stated) == list(range(1, 14))
    for path in [*_files(*PACKAGES, "tests", "benchmarks"), *PAGES]:
        unknown = _cited(path.read_text()) - stated.keys()
        assert not unknown, f"{path.relative_to(ROOT)} cites R{min(unknown)}"


def test_citations_are_seen_in_every_form() -> None:
    """One rule, several, a range: each number counts."""
    assert _cited("so (R7). And (R1, R2), rules R4 to R6; R13: x") == {1, 2, 4, 5, 6, 7, 13}
    assert _cited("R2D2, FR4, R0 and R.") == set()


def test_rule_names_its_file_and_its_test() -> None:
    """A rule says where it lives and what shows it."""
    for number, text in _rules().items():
        where, _, shown = text.partition("*Where:*")[2].partition("*Test:*")
        assert re.search(r"`[\w/]+\.(py|lua)`", where), f"R{number}"
        assert re.search(r"`test_\w+`", shown), f"R{number}"


def test_protocol_explains_every_state_and_answer() -> None:
    """Each value of the enums that the protocol speaks in is on its page."""
    enums: list[type[Enum]] = [
        replies.JobState,
        replies.LogStatus,
        replies.PullStatus,
        replies.RequeueStatus,
        held_job.Phase,
        log_states.LogState,
        log_states.LogAccess,
    ]
    values = {member.value for enum in enums for member in enum}
    assert {value for value in values if f"`{value}`" not in PROTOCOL} == set()


@pytest.mark.parametrize(
    ("heading", "legal"),
    [
        ("Held job", held_job._LEGAL),
        ("Job log", log_states.LEGAL_MOVES),
        ("Access", log_states.LEGAL_ACCESS),
    ],
    ids=["held job", "job log", "access"],
)
def test_protocol_has_the_legal_moves(heading: str, legal: Mapping[Enum, Iterable[Enum]]) -> None:
    """A table of states is the one that the code obeys."""
    table = _tables(PROTOCOL.partition(f"**{heading}**")[2])[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (.+) \|$", table, re.MULTILINE)
    moves = {state: set(re.findall(r"`(\w+)`", targets)) for state, targets in rows}
    assert moves == {
        state.value: {target.value for target in targets} for state, targets in legal.items()
    }


def _plain(text: str) -> str:
    """Return words in lower case with single blanks, those of names apart."""
    apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    return re.sub(r"[\s_-]+", " ", apart).lower()


@cache
def _source_text() -> str:
    """Return all words of the sources with single blanks."""
    files = _files(*PACKAGES, "tests/support/house")
    text = _plain("\n".join(path.read_text() for path in files))
    return f" {' '.join(re.findall(r'[a-z0-9]+', text))} "


def _is_used(word: str) -> bool:
    endings = ("", "s", "es", "d", "ed", "ing")
    return any(f" {_plain(word)}{ending} " in _source_text() for ending in endings)


def test_words_are_those_that_the_source_uses() -> None:
    """The glossary explains no word that nobody reads."""
    assert [word for word in WORDS if not _is_used(word)] == []
    assert not _is_used("custody of a manuscript")


def test_words_are_explained_once_and_in_order() -> None:
    """Each word has one meaning, and is found where the alphabet puts it."""
    assert len({word.casefold() for word in WORDS}) == len(WORDS)
    _, *sections = (ROOT / "docs" / "words.md").read_text().split("\n## ")
    for section in sections:
        _, _, *rows = re.findall(r"^\|(.+?)\|", section, re.MULTILINE)
        assert [row for row in rows if not re.fullmatch(r" \*\*[^*]+\*\* ", row)] == []
        words = [row.strip(" *").casefold() for row in rows]
        assert words
        assert words == sorted(words)


@pytest.mark.parametrize("page", ["architecture.md", "protocol.md"])
def test_words_in_italics_are_explained(page: str) -> None:
    """A word that a page sets in italics stands in the glossary."""
    text = (ROOT / "docs" / page).read_text()
    italic = {_plain(each) for each in re.findall(r"(?<![*\w])\*(\w[\w\s-]*)\*(?![*\w])", text)}
    assert italic
    known = {_plain(word) for word in WORDS}
    assert {each for each in italic if known.isdisjoint({each, each.removesuffix("s")})} == set()


@pytest.mark.parametrize(
    "rows",
    [room_rows(Tree.read()), floor_rows(), package_rows()],
    ids=["rooms", "floors", "packages"],
)
def test_architecture_shows_the_tree_as_it_is(rows: list[str]) -> None:
    """Rooms with their docstrings and the import rules stand there as they are, and no row more."""
    wanted = "\n".join(rows)
    table = next((each for each in _tables(ARCHITECTURE) if each.startswith(rows[0])), "")
    assert table == wanted, f"docs/architecture.md needs:\n{wanted}"


def _tables(text: str) -> list[str]:
    """Return the bodies of a page's tables."""
    found = re.findall(r"^\|[-| ]+\|\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [each.rstrip("\n") for each in found]


@cache
def _names_of_files() -> frozenset[str]:
    return frozenset(path.name for path in _files(*PACKAGES))


def _is_there(path: str) -> bool:
    """Tell whether a path is one of the repository's; a bare file name may be any source's."""
    return (ROOT / path).exists() or path in _names_of_files()


def _paths_of(text: str) -> set[str]:
    """Return what looks like a path between backticks."""
    known = "|".join(re.escape(each.name) for each in ROOT.iterdir() if each.is_dir())
    inside = rf"(?:{known})/[\w./-]*|[\w./-]+\.(?:py|lua|md|toml|sh|mjs|yml)"
    return set(re.findall(rf"`({inside})`", text)) - BUILT


# Folders that a command makes.
BUILT = {"build/typing/"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Every path in backticks is there."""
    if page.name == "CHANGELOG.md":
        pytest.skip("it names what was")
    missing = {path for path in _paths_of(page.read_text()) if not _is_there(path)}
    assert missing == set()


def test_paths_are_seen_in_pages() -> None:
    """The check sees what it is for: files, folders, scripts; and no code."""
    text = "`worker/gone.py`, `engine/`, `gone.lua`, `{tb:pool}`, `a/b`, `client.stream`"
    assert _paths_of(text) == {"worker/gone.py", "engine/", "gone.lua"}
    assert not _is_there("worker/gone.py")
    assert _is_there("pull.lua")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    """No page names a test that was renamed or removed."""
    assert set(re.findall(r"`(test_\w+)`", page.read_text())) <= names_of_tests()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_targets_that_a_page_names_exist(page: Path) -> None:
    """Every make target that is named exists."""
    targets = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= made


def test_new_import_paths_exist() -> None:
    """Where the changelog sends whoever imported a module, there is one."""
    changes = (ROOT / "CHANGELOG.md").read_text()
    rows = re.findall(r"^\| `(tokenbus\.[\w.]+)` \| `(tokenbus\.[\w.]+)`", changes, re.MULTILINE)
    assert len(rows) > 20
    modules = Tree.read().modules
    assert {new for _, new in rows if new not in modules} == set()


def test_questions_have_one_answer_each() -> None:
    """Each row of "Where is …?" asks once, names one file and says one thing or two about it."""
    table = _tables(ARCHITECTURE)[-1].splitlines()
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table]
    asked = [row for row in rows if not row[0].startswith("**")]
    assert len({question for question, _, _ in asked}) == len(asked) > 50
    for question, file, answer in asked:
        assert question.endswith("?"), question
        assert re.fullmatch(r"`[\w/.]+`", file), question
        assert answer.endswith("."), question


def test_every_behaviour_has_a_row() -> None:
    """Pages, scheduling and streams 1 to 15, each once and in order."""
    letters = {"K": range(1, 16), "S": range(1, 16), "T": range(1, 16)}
    wanted = [f"{letter}{number}" for letter in letters for number in letters[letter]]
    assert [row[0] for row in BEHAVIOURS] == wanted


@pytest.mark.parametrize("row", BEHAVIOURS, ids=[row[0] for row in BEHAVIOURS])
def test_row_names_tests_that_exist(row: list[str]) -> None:
    """Each behaviour names at least one test, and no test that is not there."""
    _, behaviour, here, shown = row
    assert behaviour
    assert here
    names = re.findall(r"`(\w+)`", shown)
    assert names
    assert set(names) <= names_of_tests()
