"""Names of modules as quantisation configs list them, to be quantised or to be left out."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import regex

from tokenbus.engine.errors import ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# A sound expression takes microseconds; some of a checkpoint's own would take for ever.
_MATCH_S = 1.0
# A listed name ends where a module's name does.
_BOUNDARY = r"(?:(?<=\.)|(?=\.|$))"


def compiled(pattern: str) -> regex.Pattern[str]:
    """Return a regular expression of a checkpoint's. Raises: regex.error if it is none."""
    return regex.compile(pattern)


def starts(pattern: regex.Pattern[str], name: str) -> bool:
    """Tell whether a name begins as an expression says.

    Raises: ModelUnsupported if that takes longer than any sound expression.
    """
    try:
        return pattern.match(name, timeout=_MATCH_S) is not None
    except TimeoutError as error:
        raise ModelUnsupported(
            f"the quantisation lists modules by {pattern.pattern!r:.200}, an expression that takes"
            f" more than {_MATCH_S:g} s for {name}"
        ) from error


def is_listed(names: Sequence[str], listed: Iterable[str]) -> bool:
    """Tell whether a module, by any of its names, is on a list such as `modules_to_not_convert`.

    An entry is a module, a part of its name between dots, or a regular expression for its start.
    """
    return any(_covers(entry, name) for entry in listed for name in names)


def is_named(names: Sequence[str], entry: str) -> bool:
    """Tell whether an entry of compressed-tensors is one of the names: exactly, or after `re:`."""
    if entry.startswith("re:"):
        pattern = compiled(entry[3:])
        return any(starts(pattern, name) for name in names)
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
        return starts(compiled(rf"(?:{entry}){_BOUNDARY}"), name)
    except regex.error:
        return False
