"""Stop strings across token borders: nothing past one is ever published.

Special tokens have no text, so a stop string that is one, or contains one, is looked for in another
stream of characters: the text with the tokens that are not shown spelled out in it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


@dataclass(frozen=True, slots=True)
class StopScan:
    """What a scan releases.

    texts: one per token that counts; with a match, the tokens behind it are missing.
    matched: the stop string that ended the text, if one did.
    """

    texts: tuple[str, ...]
    matched: str | None = None


class _Matcher:
    """Knuth-Morris-Pratt automaton of one stop string, fed character by character.

    `sees_hidden`: fed with the characters of tokens that are not shown, too.
    """

    def __init__(self, stop: str, *, sees_hidden: bool) -> None:
        self.stop = stop
        self.sees_hidden = sees_hidden
        # Characters at the end of the text that begin the stop string.
        self.num_pending = 0
        self._fallback = [0] * (len(stop) + 1)
        length = 0
        for index in range(1, len(stop)):
            while length and stop[index] != stop[length]:
                length = self._fallback[length]
            length += stop[index] == stop[length]
            self._fallback[index + 1] = length

    def push(self, character: str) -> bool:
        """Advance; return True if the stop string ends here."""
        while self.num_pending and character != self.stop[self.num_pending]:
            self.num_pending = self._fallback[self.num_pending]
        self.num_pending += character == self.stop[self.num_pending]
        if self.num_pending < len(self.stop):
            return False
        self.num_pending = self._fallback[self.num_pending]
        return True


class StopStrings:
    """Watches the text of one choice for its stop strings.

    Held back is only the end of the text that is the beginning of a stop string. The string that is
    completed first wins; of several completed by the same character the first of the list. One that
    is completed within the first `min_tokens` tokens is ordinary text.
    """

    def __init__(
        self,
        stops: Sequence[str],
        include: bool = False,
        min_tokens: int = 0,
        holds_special: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """Watch for these strings; empty ones match nothing.

        Args:
            include: True keeps the stop string in the text.
            holds_special: tells whether a stop string is a special token or contains one.
        """
        self._matchers = [_Matcher(s, sees_hidden=holds_special(s)) for s in stops if s]
        self._include = include
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._held = ""
        longest = max((len(m.stop) for m in self._matchers if m.sees_hidden), default=0)
        # Of the last characters, those of hidden tokens included: which are shown.
        self._are_shown: deque[bool] = deque(maxlen=longest)

    def push(self, texts: Sequence[str], hidden: Sequence[str] = ()) -> StopScan:
        """Scan the text of new tokens and release what cannot belong to a stop string.

        Nothing may be pushed after a match.

        Args:
            hidden: of each token how it is spelled where its text is not shown; it stands before
                the text that the token releases.
        """
        released = []
        for text, spelled in zip_longest(texts, hidden, fillvalue=""):
            self._num_tokens += 1
            end, matched = self._advance(spelled, text)
            whole = self._held + text
            if matched is not None:
                self._held = ""
                released.append(whole[:end] + (matched if self._include else ""))
                return StopScan(tuple(released), matched)
            released.append(whole[:end])
            self._held = whole[end:]
        return StopScan(tuple(released))

    def flush(self) -> str:
        """End the text without a match: return what was held back."""
        held, self._held = self._held, ""
        return held

    def _advance(self, hidden: str, text: str) -> tuple[int, str | None]:
        """Return how much of held text plus `text` comes before a match, or before a possible one.

        With it comes the match that ends the text, if one does.
        """
        if not self._matchers:
            return len(self._held) + len(text), None
        may_match = self._num_tokens > self._min_tokens
        for index, character in enumerate(hidden + text, len(self._held) - len(hidden)):
            is_shown = index >= len(self._held)
            self._are_shown.append(is_shown)
            completed = [
                matcher
                for matcher in self._matchers
                if (is_shown or matcher.sees_hidden) and matcher.push(character)
            ]
            if completed and may_match:
                first = completed[0]
                end = max(index + 1, len(self._held))
                return end - self._count_shown(first, len(first.stop)), first.stop
        partial = max(self._count_shown(m, m.num_pending) for m in self._matchers)
        return len(self._held) + len(text) - partial, None

    def _count_shown(self, matcher: _Matcher, num_characters: int) -> int:
        """Count the shown ones of the last characters that a matcher was fed with."""
        if not matcher.sees_hidden:
            return num_characters
        return sum(islice(reversed(self._are_shown), num_characters))
