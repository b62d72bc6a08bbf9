"""Text that arrives in pieces, read as if it were there as a whole.

Readers are generators: where they need text that is not there yet they yield, and go on when it is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

_SPACE = re.compile(r"\s*")


class IncrementalText:
    """The text that is left to be read, from `at` on; what was read before is dropped.

    Two records can be kept of what is read: an attempt, which can be had back as it was written,
    and a copy, which is handed on while it is read.
    """

    __slots__ = (
        "_attempt",
        "_copied_to",
        "_copy",
        "_tried_from",
        "at",
        "has_dropped_mark",
        "has_ended",
        "ran_out",
        "text",
    )

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.has_ended = False
        # Whether the text ended in the beginning of a mark, which is no part of it.
        self.has_dropped_mark = False
        # Whether the attempt needed more text than there is.
        self.ran_out = False
        self._attempt: list[str] | None = None
        self._tried_from = 0
        self._copy: Callable[[str], None] | None = None
        self._copied_to = 0

    def add(self, piece: str) -> None:
        """Add what has arrived."""
        self.hand_on()
        if self._attempt is not None:
            self._attempt.append(self.text[self._tried_from : self.at])
        self.text = self.text[self.at :] + piece
        self.at = self._tried_from = self._copied_to = 0

    def begin_attempt(self) -> None:
        """Record what is read from here on, in place of an earlier attempt."""
        self._attempt = []
        self.ran_out = False
        self._tried_from = self.at

    def end_attempt(self) -> str:
        """Return what was read since the attempt began."""
        parts = [*(self._attempt or ()), self.text[self._tried_from : self.at]]
        self._attempt = None
        return "".join(parts)

    def begin_copy(self, hand_on: Callable[[str], None]) -> None:
        """Hand on what is read from here on."""
        self._copy = hand_on
        self._copied_to = self.at

    def end_copy(self) -> None:
        """Hand on the last of it."""
        self.hand_on()
        self._copy = None

    def hand_on(self) -> None:
        """Hand on what was read since the last time, if a copy is wanted."""
        if self._copy is not None and self.at > self._copied_to:
            self._copy(self.text[self._copied_to : self.at])
            self._copied_to = self.at

    def more(self) -> Generator[None, None, bool]:
        """Wait for more text; tell whether there can be any."""
        if self.has_ended:
            self.ran_out = True
            return False
        yield
        return True

    def take_to(self, end: int) -> str:
        """Read up to a place of `text`."""
        begin, self.at = self.at, end
        return self.text[begin:end]

    def peek(self) -> Generator[None, None, str]:
        """Return the next character without reading it; empty at the end."""
        while self.at == len(self.text):
            if not (yield from self.more()):
                return ""
        return self.text[self.at]

    def skip_space(self) -> Generator[None, None, str]:
        """Read white space, and return the character behind it; empty at the end."""
        while True:
            self.at = self.run_end(_SPACE)
            if self.at < len(self.text):
                return self.text[self.at]
            if not (yield from self.more()):
                return ""

    def comes(self, mark: str) -> Generator[None, None, bool]:
        """Tell whether a text comes next."""
        while not self.text.startswith(mark, self.at):
            if not mark.startswith(self.text[self.at :]) or not (yield from self.more()):
                return False
        return True

    def take(self, mark: str) -> Generator[None, None, bool]:
        """Read a text if it comes next."""
        if not (yield from self.comes(mark)):
            return False
        self.at += len(mark)
        return True

    def take_all(self, marks: Sequence[str]) -> Generator[None, None, bool]:
        """Read texts that follow each other, with any white space before each of them.

        Those that come first are read even if the others do not follow.
        """
        for mark in marks:
            yield from self.skip_space()
            if not (yield from self.take(mark)):
                return False
        return True

    def run(self, characters: re.Pattern[str]) -> Generator[None, None, str]:
        """Read and return characters as long as a pattern that may match nothing takes them."""
        parts = []
        while True:
            parts.append(self.take_to(self.run_end(characters)))
            if self.at < len(self.text) or not (yield from self.more()):
                return "".join(parts)

    def run_end(self, characters: re.Pattern[str]) -> int:
        """Return where a pattern that may match nothing ends."""
        found = characters.match(self.text, self.at)
        return found.end() if found else self.at
