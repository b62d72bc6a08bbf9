"""Added tokens of a model: which they are, and how a Lark grammar spells texts that hold them.

The grammar library matches texts with the tokens of the vocabulary alone. A token that was added
with a text in angle brackets, or as special, is none of them and has to be spelled by its id.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

# White space that models may write where a format has some: enough for a line and its indentation.
SPACE = "SPACE"
SPACE_RULE = r"SPACE: /[ \t\n]{1,40}/"


class AddedTokens:
    """The tokens that a model has beside its vocabulary, by their texts."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Iterable[int] = ()
    ) -> None:
        """Read the tokens; those that end a sequence never stand in a text."""
        known = tokenizer.added_tokens_decoder
        self._ids = {
            token.content: token_id
            for token_id, token in known.items()
            if token.special or (token.content.startswith("<") and token.content.endswith(">"))
        }
        self._special = {token.content for token in known.values() if token.special}
        own = tokenizer.eos_token_id
        self._ends = {*eos_token_ids, *([own] if isinstance(own, int) else [])}
        self._others: dict[tuple[int, ...], str] = {}
        texts = sorted(filter(None, self._ids), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def is_special(self, text: str) -> bool:
        """Tell whether a text is one token that has no text in an output unless it is shown."""
        return text in self._special

    def ids_in(self, texts: Iterable[str]) -> tuple[int, ...]:
        """Return the tokens that occur in texts, in the order of their ids."""
        found = {token for text in texts for token in self._pattern.findall(text)}
        return tuple(sorted(self._ids[token] for token in found))

    def first_in(self, text: str) -> str | None:
        """Return the first of them in a text."""
        found = self._pattern.search(text)
        return found[0] if found else None

    def leading(self, text: str) -> str | None:
        """Return the one of them that a text begins with, white space aside."""
        first = self.first_in(text)
        return first if first is not None and text.lstrip().startswith(first) else None

    def spelled(self, text: str) -> str:
        """Spell a text in Lark, "" if it is empty; white space in it may differ."""
        parts: list[str] = []
        for piece in self._pieces(text):
            if not (piece == f"{SPACE}?" and parts[-1:] == [piece]):
                parts.append(piece)
        return " ".join(parts)

    def exact(self, text: str) -> str:
        """Spell a text in Lark as it stands, "" if it is empty."""
        parts: list[str] = []
        ends = 0
        for found in self._pattern.finditer(text):
            parts += (quoted(text[ends : found.start()]), self.token(found[0]))
            ends = found.end()
        return " ".join(part for part in (*parts, quoted(text[ends:])) if part != '""')

    def token(self, text: str) -> str:
        """Spell one token by its id."""
        return f"<[{self._ids[text]}]>"

    def others(self, texts: Iterable[str]) -> str:
        """Spell the tokens that are in none of the texts and end no sequence; "" for none."""
        barred = self.ids_in(texts)
        known = self._others.get(barred)
        if known is None:
            left = sorted({*self._ids.values()} - {*barred} - self._ends)
            known = f"<[{','.join(_ranges(left))}]>" if left else ""
            self._others[barred] = known
        return known

    def _pieces(self, text: str) -> Iterator[str]:
        ends = 0
        for found in self._pattern.finditer(text):
            yield from _plain_pieces(text[ends : found.start()])
            yield self.token(found[0])
            ends = found.end()
        yield from _plain_pieces(text[ends:])


def quoted(text: str) -> str:
    """Spell a literal in Lark, whose strings are those of JSON."""
    return json.dumps(text, ensure_ascii=False)


def escaped(text: str) -> str:
    """Spell a literal inside a pattern between slashes."""
    return re.sub(r"[\\^$.|?*+(){}\[\]/]", r"\\\g<0>", text).replace("\n", r"\n")


def sequence(parts: Sequence[str]) -> str:
    """Join expressions of Lark, those that say nothing left out."""
    joined: list[str] = []
    for part in filter(None, parts):
        if part.split(" ")[0] == f"{SPACE}?" and joined and joined[-1].endswith(f"{SPACE}?"):
            part = part.removeprefix(f"{SPACE}?").strip()  # noqa: PLW2901 - one white space is enough
        if part:
            joined.append(part)
    return " ".join(joined)


def _plain_pieces(text: str) -> Iterator[str]:
    """Spell a text without added tokens; white space within a line may differ, but has to be."""
    parts = re.split(r"(\s+)", text)
    for idx, part in enumerate(parts):
        if part.isspace():
            is_edge = (idx == 1 and not parts[0]) or (idx == len(parts) - 2 and not parts[-1])
            yield f"{SPACE}?" if is_edge or "\n" in part else SPACE
        elif part:
            yield quoted(part)


def _ranges(ids: Sequence[int]) -> Iterator[str]:
    """Yield runs of ids as `first-last`."""
    first = last = ids[0]
    for token_id in ids[1:]:
        if token_id != last + 1:
            yield f"{first}-{last}" if last > first else f"{first}"
            first = token_id
        last = token_id
    yield f"{first}-{last}" if last > first else f"{first}"
