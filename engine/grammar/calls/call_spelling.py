"""How calls are spelled: with the white space that readers take, or in the one canonical way.

Where the model is free to call, it writes as it was trained to. Where it has to, there is one
spelling, that of its format: nothing is drawn for what says nothing, and no token is lost on it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.engine.grammar.calls.added_tokens import SPACE, quoted
from tokenbus.engine.grammar.calls.value_rules import json_value

if TYPE_CHECKING:
    from tokenbus.engine.grammar.calls.added_tokens import AddedTokens


class CallSpelling:
    """Spells the texts of a format and the values between them.

    is_exact: there is one spelling; a format then has no other forms beside its own.
    space: white space that may be there, "" where there is none.
    """

    def __init__(self, tokens: AddedTokens, *, is_exact: bool) -> None:
        """Spell with the added tokens of a model."""
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
        """Spell a value of JSON that satisfies a schema, which is enforceable as it stands."""
        return json_value(schema, is_exact=self.is_exact)
