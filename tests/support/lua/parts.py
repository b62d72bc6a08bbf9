"""The parts that scripts are put together from, by name."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def part_names(folder: str = "") -> Iterator[str]:
    """Name the entry points, or with `lib/` the libraries."""
    lua = resources.files("tokenbus.producer.scripts") / "lua"
    names = (file.name for file in (lua / folder if folder else lua).iterdir())
    return (folder + name.removesuffix(".lua") for name in sorted(names) if name.endswith(".lua"))
