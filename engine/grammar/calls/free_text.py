"""Free text in a grammar: everything that holds no mark, added tokens of the model included."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.grammar.calls.added_tokens import escaped, sequence

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.grammar.calls.added_tokens import AddedTokens


class FreeText:
    """The rules of a text that stands before a mark, or ends an output."""

    def __init__(
        self, tokens: AddedTokens, marks: Sequence[str], barred: Sequence[str] = ()
    ) -> None:
        """Prepare the rules.

        Args:
            marks: texts that end it, without white space around them; a mark that is no token of
                the model may be none of its tokens joined.
            barred: added tokens that must not be in it though they end nothing.
        """
        self._tokens = tokens
        self._marks = tuple(dict.fromkeys(mark.strip() for mark in marks if mark.strip()))
        self._barred = tuple(barred)

    def rules(self, name: str, not_at_start: str = "") -> list[str]:
        """Return the rules of a text without any of the marks, which may be empty.

        The pattern never stands beside itself: in two parts of one text a mark could hide.

        Args:
            not_at_start: a pattern with which the text must not begin.
        """
        others, terminal = self._others, _terminal(name)
        between = f" ({others} {terminal}?)*" if others else ""
        rules = [f"{terminal}: /(?s:.+)/{self._unmarked()}"]
        first = terminal
        if not_at_start:
            first = f"FIRST_{terminal}"
            rules.append(f"{first}: /(?s:.+)/{self._unmarked()} & ~/({not_at_start})(?s:.*)/")
        return [f"{name}: {first}?{between}", *rules]

    def up_to(self, name: str, mark: str, new: str) -> tuple[str, list[str]]:
        """Spell a text that goes on to the first of a mark, and its further rules.

        Args:
            name: that of `rules`.
            new: a name for what has none yet.
        """
        core = mark.lstrip()
        if self._tokens.leading(core):
            return sequence((name, self._tokens.spelled(core))), []
        # A pattern would swallow a mark that is text, so the two are one pattern, and a lazy one.
        behind = core[len(core.rstrip()) :]
        before = f"({_terminal(name)}? {self._others})* " if self._others else ""
        rule = f"{new}[lazy]: /(?s:.*){escaped(core.rstrip())}/"
        return sequence((f"{before}{new}", self._tokens.spelled(behind))), [rule]

    @property
    def _others(self) -> str:
        return self._tokens.others((*self._marks, *self._barred))

    def _unmarked(self) -> str:
        """Return what a pattern is narrowed by, so that it holds none of the marks."""
        if not self._marks:
            return ""
        either = "|".join(map(escaped, self._marks))
        return f" & ~/(?s:.*)({either})(?s:.*)/"


def _terminal(name: str) -> str:
    return f"{name.upper()}_TEXT"
