"""The words of a grammar's source: keys and values that a schema names, in its order."""

from __future__ import annotations

import re
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Of letters, figures and few marks, so that what stands between two words is none. A source inside
# a text of JSON has its quotes escaped.
_WORD = re.compile(r'"([\w .#/-]{1,64})\\?"')
# Of one source; a word takes a few microseconds to tokenise.
_MAX_WORDS = 512


def first_tokens(source: str, tokenise: Callable[[str], Sequence[int]]) -> dict[int, int]:
    """Return the tokens that begin quoted words, each with the place of its first word."""
    words = dict.fromkeys(match[1] for match in islice(_WORD.finditer(source), _MAX_WORDS))
    found: dict[int, int] = {}
    for place, word in enumerate(words):
        for token_id in tokenise(word)[:1]:
            found.setdefault(token_id, place)
    return found
