"""Keys of an output's objects: none comes twice.

A grammar of the library has each listed key once, but knows no key that is not listed. So the
output is followed beside it: a token that would end a key for the second time is masked out.
"""

from __future__ import annotations

import bisect
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llguidance import LLMatcher
    from torch import Tensor

_QUOTE, _BACKSLASH, _COMMA = b'"\\,'
_OPEN, _CLOSE = b"{[", b"}]"


class KeyRepeated(ValueError):
    """A key has come for the second time in one object."""


class TokenTable:
    """The bytes of all tokens, by id and in order."""

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self._order = sorted((token, token_id) for token_id, token in enumerate(tokens) if token)
        self._holding: dict[bytes, list[int]] = {}
        self.of_whole_keys = [
            token_id for token_id, token in enumerate(tokens) if token.count(b'"') > 1
        ]

    def holding(self, text: bytes) -> list[int]:
        """Return the tokens that hold a text, found once."""
        if text not in self._holding:
            found = [token_id for token_id, token in enumerate(self.tokens) if text in token]
            self._holding[text] = found
        return self._holding[text]

    def beginning(self, prefix: bytes) -> Iterator[int]:
        """Yield the tokens that begin with some bytes."""
        for token, token_id in self._order[bisect.bisect_left(self._order, (prefix, -1)) :]:
            if not token.startswith(prefix):
                return
            yield token_id


class Watch(Protocol):
    """What follows an output by tokens and refuses those that would repeat something in it."""

    def copy(self) -> Watch:
        """Return an independent watch at the same place."""

    def accept(self, token_id: int) -> None:
        """Follow one token. Raises: KeyRepeated."""


def cleared(mask: Tensor, token_ids: Iterable[int], watch: Watch) -> Tensor:
    """Return a mask, [W] int32, without those of some tokens that a watch refuses."""
    allowed = (token_id for token_id in token_ids if _is_set(mask, token_id))
    barred = [token_id for token_id in allowed if _is_refused(watch, token_id)]
    if not barred:
        return mask
    filtered = mask.clone()
    for token_id in barred:
        word, bit = divmod(token_id, 32)
        # The 32nd bit is the sign of its word.
        filtered[word] = int(filtered[word]) & ~((1 << bit) - (1 << 32 if bit == 31 else 0))
    return filtered


def _is_refused(watch: Watch, token_id: int) -> bool:
    try:
        watch.copy().accept(token_id)
    except KeyRepeated:
        return True
    return False


class KeyWatch:
    """Where an output of JSON stands: the keys of its open objects, and the text it is in."""

    def __init__(self, table: TokenTable) -> None:
        """Stand before the output."""
        self._table = table
        # Of each open object its keys, of each open list None.
        self._open: list[set[bytes] | None] = []
        self._key: bytearray | None = None
        self._is_in_text = self._is_escaped = False
        self._awaits_key = False

    def copy(self) -> KeyWatch:
        """Return an independent watch at the same place."""
        twin = KeyWatch(self._table)
        self._copy_to(twin)
        return twin

    def _copy_to(self, twin: KeyWatch) -> None:
        twin._open = [None if keys is None else set(keys) for keys in self._open]
        twin._key = None if self._key is None else bytearray(self._key)
        twin._is_in_text, twin._is_escaped = self._is_in_text, self._is_escaped
        twin._awaits_key = self._awaits_key

    def accept(self, token_id: int) -> None:
        """Follow one token. Raises: KeyRepeated."""
        if token_id < len(self._table.tokens):
            for byte in self._table.tokens[token_id]:
                self.follow(byte)

    @property
    def is_inside(self) -> bool:
        """True inside an object, a list or a string."""
        return bool(self._open) or self._is_in_text

    def allowed(self, mask: Tensor, matcher: LLMatcher) -> Tensor:  # noqa: ARG002 - for watches of more
        """Return a mask, [W] int32, without what would repeat; `matcher` stands where it is for."""
        return self.filtered(mask)

    def filtered(self, mask: Tensor) -> Tensor:
        """Return a mask, [W] int32, without tokens that would repeat a key."""
        if not any(self._open):
            return mask
        return cleared(mask, self._candidates(), self)

    def _candidates(self) -> Iterator[int]:
        yield from self._table.of_whole_keys
        keys = self._open[-1] if self._open else None
        if self._key is not None and keys:
            begun = bytes(self._key)
            for key in keys:
                if key.startswith(begun):
                    yield from self._table.beginning(key[len(begun) :] + b'"')

    def follow(self, byte: int) -> None:
        """Follow one byte. Raises: KeyRepeated."""
        if self._is_in_text:
            self._follow_text(byte)
        elif byte == _QUOTE:
            self._is_in_text = True
            self._key = bytearray() if self._awaits_key else None
            self._awaits_key = False
        elif byte in _OPEN:
            self._open.append(set() if byte == _OPEN[0] else None)
            self._awaits_key = byte == _OPEN[0]
        elif byte in _CLOSE and self._open:
            self._open.pop()
            self._awaits_key = False
        elif byte == _COMMA and self._open:
            self._awaits_key = self._open[-1] is not None

    def _follow_text(self, byte: int) -> None:
        if self._key is not None and (byte != _QUOTE or self._is_escaped):
            self._key.append(byte)
        if self._is_escaped:
            self._is_escaped = False
        elif byte == _BACKSLASH:
            self._is_escaped = True
        elif byte == _QUOTE:
            self._is_in_text = False
            if self._key is not None:
                self._end_key(bytes(self._key))

    def _end_key(self, key: bytes) -> None:
        keys = self._open[-1]
        assert keys is not None
        self._key = None
        add_key(keys, key)


def add_key(keys: set[bytes], key: bytes) -> None:
    """Add a key to those of its object. Raises: KeyRepeated."""
    if key in keys:
        raise KeyRepeated(f"the key {key.decode(errors='replace')!r} comes twice")
    keys.add(key)


def is_open(schema: Any) -> bool:
    """Tell whether an enforceable schema allows an object with keys that it does not list."""
    if not isinstance(schema, dict):
        return bool(schema)
    if {"enum", "const"} & set(schema):
        return False
    inner = [schema[word] for word in ("items", "additionalProperties") if word in schema]
    for word in ("anyOf", "allOf", "prefixItems"):
        inner += schema.get(word, ())
    for word in ("properties", "patternProperties", "$defs"):
        inner += schema.get(word, {}).values()
    if any(map(is_open, inner)):
        return True
    names = schema.get("type", [])
    if not names:
        return not {"anyOf", "allOf", "$ref"} & set(schema)
    if "array" in names and "items" not in schema:
        return True
    has_patterns = any(one is not False for one in schema.get("patternProperties", {}).values())
    return "object" in names and (has_patterns or schema.get("additionalProperties") is not False)


def _is_set(mask: Tensor, token_id: int) -> bool:
    word, bit = divmod(token_id, 32)
    return word < len(mask) and bool(int(mask[word]) >> bit & 1)
