"""The table of forms in `docs/models.md`: read, checked and written.

Run as a script it writes the rows of the forms that are named, or of all.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import transformers
from models.causal_lms import variants, verdict_of

PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"
_ROW = re.compile(r"^\| `?(.+?)`? \| ((?:answers|refused): .+) \|$", re.MULTILINE)
_NOT_DRAWN = re.compile(r"^\| `(\w+)` \| not drawn: (.+) \|$", re.MULTILINE)


def rows() -> dict[str, str]:
    """Return what the page says of each form."""
    return dict(_ROW.findall(PAGE.read_text()))


def not_drawn() -> dict[str, str]:
    """Return why the page has no row for a form."""
    return dict(_NOT_DRAWN.findall(PAGE.read_text()))


def made_with() -> str:
    """Return the version of transformers that the page names."""
    found = re.search(r"made with transformers (\S+)\.\n", PAGE.read_text())
    assert found is not None
    return found.group(1)


def write(verdicts: dict[str, str]) -> None:
    """Write rows for the forms that there are, in their order."""
    text = PAGE.read_text()
    told = rows() | verdicts
    head = text[: text.index("|---|---|\n", text.index("| form | what")) + len("|---|---|\n")]
    head = re.sub(
        r"transformers \S+\.\n\n\| form",
        f"transformers {transformers.__version__}.\n\n| form",
        head,
    )
    body = "".join(f"| `{name}` | {told[name]} |\n" for name in variants() if name in told)
    PAGE.write_text(head + body)


def main(names: list[str]) -> int:
    """Write the rows of these forms, or of all; return 1 if one neither answers nor is refused."""
    found = variants()
    with tempfile.TemporaryDirectory() as folder:
        verdicts = {name: verdict_of(found[name], Path(folder) / "m") for name in names or found}
    write(verdicts)
    wrong = {name: told for name, told in verdicts.items() if not told.startswith(("a", "ref"))}
    for name, told in wrong.items():
        print(f"{name}: {told}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
