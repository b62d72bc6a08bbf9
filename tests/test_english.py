"""Plain English: a module's docstring names the thing first, and no word makes a riddle of it."""

from __future__ import annotations

import re

from house.modules import ROOT, Tree

MODULES = list(Tree.read().modules.values())
# A sentence that begins so asks before it says what there is.
_ASKING = re.compile(r"(?:What|Who|Whose|Where|When|Which|How|Why|Whether|That)\b")
_RIDDLE = re.compile(r"\b(?:whoever|whomever|whosoever|of ours)\b", re.IGNORECASE)


def _asks(docstring: str) -> bool:
    """Tell whether a docstring begins with a question in place of a thing."""
    return not docstring or _ASKING.match(docstring) is not None


def _riddles(path: str, text: str) -> list[str]:
    """Return the places of words that leave out whom or what they mean."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{path}:{number}: {line.strip()}" for number, line in lines if _RIDDLE.search(line)]


def test_docstring_of_a_module_begins_with_the_thing() -> None:
    """Every module has a docstring, whose first word belongs to what the module is."""
    asking = [f"{one.path}: {one.docstring}" for one in MODULES if _asks(one.docstring)]
    assert not asking, "\n".join(asking)


def test_source_has_no_riddle() -> None:
    """Docstrings and comments, those of scripts too, say who is meant."""
    scripts = sorted((ROOT / "producer").rglob("*.lua"))
    assert scripts
    texts = [(one.path, one.source) for one in MODULES]
    texts += [(path.relative_to(ROOT).as_posix(), path.read_text()) for path in scripts]
    found = [place for path, text in texts for place in _riddles(path, text)]
    assert not found, "\n".join(found)


def test_planted_riddles_are_seen() -> None:
    """A question and a riddle are found, and words that only look like one are let pass."""
    assert _asks("What waits for a page.")
    assert _asks("")
    assert not _asks("Whatever it takes: the wait for a page.")
    assert not _asks("The wait for a page.")
    assert _riddles("a.py", "x = 1\n# Whoever waits.\n") == ["a.py:2: # Whoever waits."]
    assert _riddles("a.py", "# Errors of hours of ourselves\n") == []
