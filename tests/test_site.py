"""The pages as a site: each is in its contents, every link leads somewhere, and it builds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "deploy" / "README.md"])


def _leaves(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    inner = part.values() if isinstance(part, dict) else part
    return [leaf for each in inner for leaf in _leaves(each)]


def test_contents_name_every_page_once() -> None:
    """No page is left out of the site's contents, and none stands there that is not written."""
    named = _leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(named) == sorted(page.name for page in DOCS.glob("*.md"))


def _headings(page: Path) -> set[str]:
    """Return the anchors of a page, as readers of Markdown make them of its headings."""
    titles = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """A relative link names a file that is there, and a heading in it that is there."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in _headings(file), f"{page.name}: {target}"


def test_site_builds(tmp_path: Path) -> None:
    """`make site` writes a page for each, without a warning."""
    command = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "--quiet", "-d"]
    ended = subprocess.run(
        [*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    built = {path.stem for path in tmp_path.glob("*.html")}
    assert {page.stem for page in DOCS.glob("*.md")} <= built
