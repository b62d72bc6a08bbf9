"""Call formats of templates that render no call: told by marks that are shown, or are tokens."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_format import CallFormat, CallSyntax
from tokenbus.engine.chat.call_formats import CALL_FORMATS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

# A list of calls in Python as templates show it that have no mark: `[name(key=value, …), …]`.
_PYTHON_LIST = re.compile(r"\[\w+\(\w+ *=")
# Marks that no other family has: they tell a format without an example of a call.
_OWN_MARKS = ("<|", "<\N{FULLWIDTH VERTICAL LINE}")


def formats_shown_in(shown: str) -> list[str]:
    """Return the formats of which a text shows most; of those of one syntax the first."""
    best = _best(lambda each: _size_shown(each, shown))
    return best[:1] if len({CALL_FORMATS[name].syntax for name in best}) == 1 else best


def formats_with_tokens(added: Collection[str]) -> list[str]:
    """Return the formats whose opening mark is a token, and in whose texts most tokens stand."""
    return _best(lambda each: _num_tokens(each, added))


def _best(size_of: Callable[[CallFormat], int]) -> list[str]:
    sizes = {each.name: size for each in CALL_FORMATS.values() if (size := size_of(each))}
    return [name for name, size in sizes.items() if size == max(sizes.values())]


def _size_shown(written: CallFormat, shown: str) -> int:
    """Return how many characters of a format's texts are shown; 0 if one that it needs is not."""
    opening = (written.section_open or written.call_open).strip()
    if written.is_bare and written.is_list and written.syntax is CallSyntax.PYTHON:
        return bool(_PYTHON_LIST.search(shown))
    behind = shown.partition(opening)[2] if opening else ""
    texts = [text.strip() for text in _own_texts(written)]
    needed = [opening] if written.syntax is CallSyntax.JSON_CALL else [opening, *texts]
    if not behind or not all(text in shown for text in needed):
        return 0
    if not opening.startswith(_OWN_MARKS) and not _is_begun(written, opening, shown):
        return 0
    return sum(len(text) for text in texts if text in shown)


def _is_begun(written: CallFormat, opening: str, shown: str) -> bool:
    """Tell whether a call begins behind the mark that opens it, in the syntax of the format."""
    match written.syntax:
        case CallSyntax.JSON_CALL:
            keys = "|".join(filter(None, (written.name_key, written.arguments_key)))
            begin = rf"{_loose(opening)}\s*\[?\s*\{{+\s*[\"'](?:{keys})[\"']"
        case CallSyntax.PYTHON:
            begin = rf"{_loose(opening)}\s*\[?\s*\w+\("
        case CallSyntax.JSON_ARGUMENTS:
            begin = rf"{_loose(written.name_close)}\s*\{{"
        case CallSyntax.PARAMETERS | CallSyntax.BRACED:
            return True
    return re.search(begin, shown) is not None


def _loose(mark: str) -> str:
    """Return the pattern of a mark with any white space where it has some."""
    return r"\s*".join(map(re.escape, mark.split()))


def _num_tokens(written: CallFormat, added: Collection[str]) -> int:
    """Return how many tokens of a model stand in a format's texts; 0 if none opens its calls."""
    opening = (written.section_open or written.call_open).strip()
    texts = " ".join(written.texts)
    if not any(opening.startswith(token) for token in added):
        return 0
    # Of two formats with the same tokens, that whose opening mark is one has it.
    return 2 * sum(token in texts for token in added) + (opening in added)


def _own_texts(written: CallFormat) -> tuple[str, ...]:
    """Return the texts of a format alone, without those that are only read."""
    return replace(written, also_read=()).texts
