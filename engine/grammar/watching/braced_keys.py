"""Keys of objects whose keys stand bare and whose strings stand between marks: none comes twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.grammar.schema.key_watch import add_key, cleared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from tokenbus.engine.grammar.schema.key_watch import TokenTable

_OPEN, _CLOSE, _COMMA = b"{[", b"}]", b","
_SPACE = b" \t\r\n"
# What ends a key: behind white space nothing but a colon may come.
_KEY_ENDS = b":" + _SPACE


class BracedKeys:
    """Where such an object stands: the keys of what is open, and whether it is in a string."""

    def __init__(self, table: TokenTable, quote: str) -> None:
        """Stand before it; `quote` is the mark around strings."""
        self._table = table
        self._quote = quote.encode()
        self._open: list[set[bytes] | None] = []
        self._key: bytearray | None = None
        self._tail = bytearray()
        self._is_in_text = False

    @property
    def is_inside(self) -> bool:
        """True inside an object, a list or a string."""
        return bool(self._open) or self._is_in_text

    def copy(self) -> BracedKeys:
        """Return an independent watch at the same place."""
        twin = BracedKeys(self._table, "")
        twin._quote, twin._tail = self._quote, self._tail[:]
        twin._open = [None if keys is None else set(keys) for keys in self._open]
        twin._key = None if self._key is None else self._key[:]
        twin._is_in_text = self._is_in_text
        return twin

    def filtered(self, mask: Tensor) -> Tensor:
        """Return a mask, [W] int32, without tokens that would repeat a key."""
        return cleared(mask, self._candidates(), self)

    def accept(self, token_id: int) -> None:
        """Follow one token. Raises: KeyRepeated."""
        for byte in self._table.tokens[token_id]:
            self.follow(byte)

    def follow(self, byte: int) -> None:
        """Follow one byte. Raises: KeyRepeated."""
        self._tail = self._tail[-len(self._quote) :] + bytes([byte])
        if self._tail.endswith(self._quote):
            self._is_in_text, self._key = not self._is_in_text, None
            self._tail.clear()
        elif not self._is_in_text:
            self._follow_outside(byte)

    def _follow_outside(self, byte: int) -> None:
        if self._key is not None and byte in _KEY_ENDS:
            if self._key:
                self._end_key(bytes(self._key))
        elif byte in _OPEN:
            is_object = byte == _OPEN[0]
            self._open.append(set() if is_object else None)
            self._key = bytearray() if is_object else None
        elif byte in _CLOSE and self._open:
            self._open.pop()
            self._key = None
        elif byte in _COMMA and self._open:
            self._key = None if self._open[-1] is None else bytearray()
        elif self._key is not None:
            self._key.append(byte)

    def _end_key(self, key: bytes) -> None:
        keys = self._open[-1]
        assert keys is not None
        self._key = None
        add_key(keys, key)

    def _candidates(self) -> Iterator[int]:
        keys = self._open[-1] if self._open else None
        if self._is_in_text or not keys:
            return
        begun = _COMMA if self._key is None else bytes(self._key)
        for key in keys:
            rest = _COMMA + key if self._key is None else key[len(begun) :]
            if self._key is None or key.startswith(begun):
                for end in _KEY_ENDS:
                    yield from self._table.beginning(rest + bytes([end]))
