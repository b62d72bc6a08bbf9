"""Marks: texts that are looked for in an answer, which may end in the middle of one."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from tokenbus.engine.chat.reading.incremental_text import IncrementalText

# Characters from which the beginning of a mark is one; texts end in "<", "```" and the like.
_LIKELY_MARK = 4
_NEVER = re.compile(r"(?!)")


class Marks:
    """A set of texts, found by one search, together with beginnings of them at a text's end."""

    __slots__ = ("_beginnings", "_marks", "_pattern")

    def __init__(self, marks: Iterable[str]) -> None:
        self._marks = frozenset(mark for mark in marks if mark)
        self._beginnings = frozenset(
            mark[:size] for mark in self._marks for size in range(1, len(mark))
        )
        self._pattern = re.compile(_pattern(_trie(self._marks))) if self._marks else _NEVER

    def __contains__(self, text: str) -> bool:
        """Tell whether a text is one of the marks."""
        return text in self._marks

    def find(self, text: str, at: int) -> tuple[int, str] | None:
        """Return the first mark from `at` on, or the beginning of one that ends the text."""
        found = self._pattern.search(text, at)
        return (found.start(), found[0]) if found else None

    def may_grow(self, mark: str) -> bool:
        """Tell whether what was found at the end of a text is the beginning of a mark."""
        return mark in self._beginnings


def _trie(marks: Iterable[str]) -> dict[str, Any]:
    """Return marks by their characters, nested; the key "" says that a mark ends there."""
    root: dict[str, Any] = {}
    for mark in marks:
        node = root
        for char in mark:
            node = node.setdefault(char, {})
        node[""] = {}
    return root


def _pattern(node: dict[str, Any], *, is_root: bool = True) -> str:
    """Return a pattern of all marks below a node, the longest first, and of their beginnings."""
    ways = [
        re.escape(char) + _pattern(below, is_root=False) for char, below in node.items() if char
    ]
    if not ways:
        return ""
    if not is_root:
        ways.append(r"\Z")
        if "" in node:
            ways.append("")
    return f"(?:{'|'.join(ways)})"


def _is_no_text(beginning: str) -> bool:
    """Tell whether no text ends in such a beginning; some end in `<` or in a fence."""
    return len(beginning) >= _LIKELY_MARK and not beginning[0].isalpha()


def text_up_to(
    source: IncrementalText,
    marks: Marks,
    add: Callable[[str], None],
    is_beginning_dropped: Callable[[], bool] = lambda: False,
) -> Generator[None, None, str | None]:
    """Hand on text until a mark comes next, and return that; None at the end of the answer.

    A beginning of a mark that ends the answer is dropped if it is said to be, or if nothing else is
    likely: from four characters on, unless it is a word. Otherwise it is text.
    """
    while True:
        found = marks.find(source.text, source.at)
        begin = found[0] if found else len(source.text)
        add(source.take_to(begin))
        if found:
            mark = found[1]
            is_last = begin + len(mark) == len(source.text)
            if not is_last or not marks.may_grow(mark) or (source.has_ended and mark in marks):
                return mark
            if source.has_ended:
                if is_beginning_dropped() or _is_no_text(mark):
                    source.at = len(source.text)
                    source.has_dropped_mark = True
                else:
                    add(source.take_to(begin + 1))
                continue
        if not (yield from source.more()):
            return None
