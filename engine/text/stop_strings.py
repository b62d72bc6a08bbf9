"""Stop strings across token borders: nothing past one is ever published."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class StopScan:
    """What a scan releases.

    texts: one per token that counts; with a match, the tokens behind it are missing.
    matched: the stop string that ended the text, if one did.
    """

    texts: tuple[str, ...]
    matched: str | None = None


class _Matcher:
    """Knuth-Morris-Pratt automaton of one stop string, fed character by character."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
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

    def __init__(self, stops: Sequence[str], include: bool = False, min_tokens: int = 0) -> None:
        """Watch for these strings; empty ones match nothing.

        Args:
            include: True keeps the stop string in the text.
        """
        self._matchers = [_Matcher(stop) for stop in stops if stop]
        self._include = include
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._held = ""

    def push(self, texts: Sequence[str]) -> StopScan:
        """Scan the text of new tokens and release what cannot belong to a stop string.

        Nothing may be pushed after a match.
        """
        released = []
        for text in texts:
            self._num_tokens += 1
            end, matched = self._advance(text)
            whole = self._held + text
            released.append(whole[:end])
            if matched is not None:
                self._held = ""
                return StopScan(tuple(released), matched)
            self._held = whole[end:]
        return StopScan(tuple(released))

    def flush(self) -> str:
        """End the text without a match: return what was held back."""
        held, self._held = self._held, ""
        return held

    def _advance(self, text: str) -> tuple[int, str | None]:
        """Return how much of held text plus `text` is released, and the match that ends it."""
        if not self._matchers:
            return len(self._held) + len(text), None
        may_match = self._num_tokens > self._min_tokens
        for index, character in enumerate(text):
            completed = [matcher.stop for matcher in self._matchers if matcher.push(character)]
            if completed and may_match:
                end = len(self._held) + index + 1
                return end if self._include else end - len(completed[0]), completed[0]
        partial = max(matcher.num_pending for matcher in self._matchers)
        return len(self._held) + len(text) - partial, None
