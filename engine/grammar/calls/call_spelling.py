"""Spellings of calls: with the white space that readers take, or in the one canonical way.

A model that is free to call writes as it was trained to. One that has to call gets the one spelling
of its format, so that no token is drawn for white space that says nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.calls.added_tokens import SPACE, quoted
from tokenbus.engine.grammar.calls.text_patterns import whole_pattern
from tokenbus.engine.grammar.calls.value_rules import json_value
from tokenbus.engine.grammar.schema.refusal import CALL_STEPS, StepBudget

if TYPE_CHECKING:
    from tokenbus.engine.grammar.calls.added_tokens import AddedTokens

# Of all values in one form of calls, whose rules are made twice where it is not the only form. The
# grammar library takes longer than the limit of a trial for half as many.
MAX_CHARACTERS = 8_000_000


class CallSpelling:
    """Spells the texts of a format and the values between them, up to a bound.

    is_exact: there is one spelling; a format then has no other forms beside its own.
    space: white space that may be there, "" where there is none.
    """

    def __init__(self, tokens: AddedTokens, *, is_exact: bool) -> None:
        """Spell with the added tokens of a model."""
        self._num_characters = 0
        self._budget = StepBudget(CALL_STEPS)
        self._patterns: dict[tuple[str, int, int | None], str] = {}
        self.tokens = tokens
        self.is_exact = is_exact
        self.space = "" if is_exact else f"{SPACE}?"

    def text(self, text: str) -> str:
        """Spell a text of the format."""
        return self.tokens.exact(text) if self.is_exact else self.tokens.spelled(text)

    def between(self, mark: str, exact: str) -> str:
        """Spell a mark of punctuation; `exact` is how the format writes it."""
        return quoted(exact) if self.is_exact else f"{SPACE}? {quoted(mark)} {SPACE}?"

    def value(self, schema: Any) -> str:
        """Spell a value of JSON that satisfies a schema, which is enforceable as it stands.

        Raises: GrammarRejected for the field `tools` if all values together are too long.
        """
        spelled = json_value(schema, is_exact=self.is_exact)
        self._num_characters += len(spelled)
        if self._num_characters > MAX_CHARACTERS:
            reason = f"their arguments are more than {MAX_CHARACTERS} characters, written out"
            raise GrammarRejected("tools", reason)
        return spelled

    def pattern(self, pattern: str, least: int = 0, most: int | None = None) -> str:
        """Return what a string is as a whole; see `whole_pattern` for more."""
        key = pattern, least, most
        if key not in self._patterns:
            self._patterns[key] = whole_pattern(pattern, self._budget, least, most)
        return self._patterns[key]
