"""The drills of docs/incidents.md: the lines that make an incident, and those that mend it."""

from __future__ import annotations

from dataclasses import dataclass

from house.shell import ROOT, bodies_of

PAGE = ROOT / "docs" / "incidents.md"
_POOL = "A pool for drills"


@dataclass(frozen=True, slots=True)
class Drill:
    """One incident, by the word that the dashboard has for it."""

    code: str
    make: tuple[str, ...]
    mend: tuple[str, ...]


def sections() -> dict[str, list[tuple[str, ...]]]:
    """Return the blocks of each section of the page, by its heading."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            found[line[3:]] = []
        elif found:
            next(reversed(found.values())).append(line)
    return {
        heading: [tuple(body) for _, body in bodies_of(lines)] for heading, lines in found.items()
    }


def pool_lines() -> tuple[str, ...]:
    """Return the lines that start the pool and its load."""
    start, load = sections()[_POOL]
    return (*start, *load)


def drills() -> dict[str, Drill]:
    """Return the incidents that have a drill."""
    return {
        heading: Drill(heading, *blocks)
        for heading, blocks in sections().items()
        if heading != _POOL and blocks
    }
