"""Tables of pages: those that the page of the architecture shows of the tree and of the rules."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from house.modules import PACKAGES
from house.rules import FACES, FLOORS, RULES

if TYPE_CHECKING:
    from house.modules import Tree
    from house.rules import Rule


def with_table(text: str, heading: str, table: str) -> str:
    """Return a page with `table` under a heading, behind what is said there."""

    def filled(match: re.Match[str]) -> str:
        return f"{match[1]}{table}\n"

    pattern = rf"(^## {heading}\n(?:(?!^## |^\|).*\n)*)(?:^\|.*\n)*\n*"
    text, count = re.subn(pattern, filled, text, flags=re.MULTILINE)
    assert count == 1, f"no heading {heading}"
    return text


def room_rows(tree: Tree) -> list[str]:
    """Return a row per room: its folder, and the first paragraph of its docstring."""
    rooms = {
        module.folder: " ".join(module.docstring.partition("\n\n")[0].split())
        for module in tree.modules.values()
        if module.path.endswith("/__init__.py")
    }
    order = sorted(rooms, key=lambda room: (PACKAGES[::-1].index(room.split("/")[0]), room))
    return [f"| `{room}/` | {rooms[room]} |" for room in order]


def floor_rows() -> list[str]:
    """Return a row per floor, from the top down."""
    return [
        f"| `{package}/` | {', '.join(_shown(room) for room in rooms)} |"
        for package, floors in reversed(FLOORS.items())
        for rooms in floors
    ]


def _shown(room: str) -> str:
    folder = room.removesuffix(" (faces)")
    if folder == room:
        is_split = room in FACES or room in PACKAGES
        return f"`{room}/` (vocabulary)" if is_split else f"`{room}/`"
    return f"`{folder}/` (faces: {', '.join(sorted(FACES[folder] - {'__init__'})) or 'lazy names'})"


def package_rows() -> list[str]:
    """Return a row per package rule: what it imports of ours, and what it never imports."""
    return [
        f"| `{folder}/` | {_lent(rule)} | {', '.join(sorted(rule.never))} |"
        for folder, rule in RULES.items()
    ]


def _lent(rule: Rule) -> str:
    return ", ".join([*sorted(rule.siblings), *(f"`{room}/`" for room in sorted(rule.rooms))])
