"""Names of modules as quantisation configs list them, to be quantised or to be left out."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# A listed name ends where a module's name does.
_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"


def is_listed(names: Sequence[str], listed: Iterable[str]) -> bool:
    """Tell whether a module, by any of its names, is on a list such as `modules_to_not_convert`.

    An entry is a module, a part of its name between dots, or a regular expression for its start.
    """
    return any(_covers(entry, name) for entry in listed for name in names)


def is_named(names: Sequence[str], entry: str) -> bool:
    """Tell whether an entry of compressed-tensors is one of the names: exactly, or after `re:`."""
    if entry.startswith("re:"):
        return any(re.match(entry[3:], name) is not None for name in names)
    return entry in names


def is_excluded(names: Sequence[str], patterns: Iterable[str]) -> bool:
    """Tell whether a module is on a list of ModelOpt, which has wildcards and whole branches."""
    return any(
        fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
        for pattern in patterns
        for name in names
    )


def _covers(entry: str, name: str) -> bool:
    part = entry.strip(".")
    if f".{part}." in f".{name}.":
        return True
    try:
        return re.match(rf"(?:{entry}){_BOUNDARY}", name) is not None
    except re.error:
        return False
