r"""Patterns of JSON strings, kept inside what the grammar library quotes correctly.

The library matches a pattern against the escaped spelling of a string. It takes a character class
that holds the control characters for one that holds every character with an escape, so `[^"]`
would let `\"` through. Control characters other than tab and line ends are of no use in generated
text: they are taken out of negated classes, and a class that names them is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# All control characters but tab, line feed and carriage return.
_NO_CONTROLS = r"\x00-\x08\x0b\x0c\x0e-\x1f"
_NAMES_CONTROL = re.compile(
    r"\\(x[01]|x\{0*1?[0-9A-Fa-f]\}|u00[01]|u\{0*1?[0-9A-Fa-f]\}|U000000[01]|0|c|a|v|f)"
    r"|[\x00-\x08\x0b\x0c\x0e-\x1f]"
)
# Unicode properties that hold no control character, and those whose complement holds the quote.
_PROPERTY = re.compile(r"\\([pP])(\{[^}]*\}|.)")
_WITHOUT_CONTROLS = re.compile(r"\{?([LMNPSZ][a-z]?|[A-Z][a-z]{3,}|(sc|scx|Script)=\w+)\}?")
_WITH_CONTROLS = {"Other", "Control", "Common", "Assigned"}
_COMPLEMENT_HAS_QUOTES = re.compile(r"\{?[LNMZ][a-z]?\}?")


class PatternRefused(ValueError):
    """A pattern uses something that would not be enforced; the message says what."""


def safe_pattern(pattern: str) -> str:
    """Return an equivalent pattern, up to control characters, that is enforced as written.

    Raises: PatternRefused.
    """
    for sign, name in _PROPERTY.findall(pattern):
        _check_property(sign, name)
    return "".join(_safe_pieces(pattern))


def _safe_pieces(pattern: str) -> Iterator[str]:
    """Yield the pattern piece by piece, each class made safe."""
    position = 0
    while position < len(pattern):
        if pattern[position] == "[":
            ends = _class_end(pattern, position)
            yield _safe_class(pattern[position:ends])
        else:
            ends = position + (2 if pattern[position] == "\\" else 1)
            yield pattern[position:ends]
        position = ends


def _class_end(pattern: str, begins: int) -> int:
    """Return where the character class ends that begins here.

    Raises: PatternRefused for a class inside a class, or one that never ends.
    """
    position = begins + (2 if pattern.startswith("[^", begins) else 1)
    first = position
    while position < len(pattern):
        character = pattern[position]
        if character == "]" and position > first:
            return position + 1
        if character == "[":
            raise PatternRefused("a character class inside another")
        position += 2 if character == "\\" else 1
    raise PatternRefused("a character class without its closing bracket")


def _safe_class(text: str) -> str:
    """Return a class without control characters.

    Raises: PatternRefused if it names them, or is an intersection or a difference.
    """
    if any(operator in text for operator in ("&&", "--", "~~")):
        raise PatternRefused("an operation on character classes")
    if text.startswith("[^"):
        return f"[^{text[2:-1]}{_NO_CONTROLS}]"
    if _NAMES_CONTROL.search(text):
        raise PatternRefused("control characters in a character class")
    return text


def _check_property(sign: str, name: str) -> None:
    """Raise for a Unicode property that holds controls but not the quote and the backslash."""
    if sign == "P":
        if not _COMPLEMENT_HAS_QUOTES.fullmatch(name):
            raise PatternRefused(f"the complement \\P{name}")
    elif not _WITHOUT_CONTROLS.fullmatch(name) or name.strip("{}") in _WITH_CONTROLS:
        raise PatternRefused(f"the property \\p{name}")
