"""Items of an output's lists: none comes twice where a schema asks for that.

A grammar cannot remember items, so the output is followed beside it. Masked out are tokens that
would end an item for the second time, and those behind which nothing but such an item could come.
It is one noun: an output is followed, and what may follow is told from where it stands.
"""

from __future__ import annotations

import json
from copy import copy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from tokenbus.engine.grammar.schema.key_watch import KeyRepeated, KeyWatch, TokenTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llguidance import LLMatcher
    from torch import Tensor

    from tokenbus.engine.grammar.watching.list_places import ListPlaces, Place

# Masks behind single tokens that are looked at for one mask. A list of short labels takes ten;
# what lies deeper is taken to go on.
_MAX_LOOKS = 64
# Tokens that may follow somewhere, past which that place goes on whatever the list has.
_ENDLESS = 1_000
_COMMA, _ENDS = b","[0], b",]"

Ids = np.ndarray[Any, np.dtype[np.int64]]


class ItemRepeated(KeyRepeated):
    """An item has come for the second time in a list that has each item once."""


class ItemTable(TokenTable):
    """The bytes of all tokens, with those that may end an item."""

    def __init__(self, tokens: list[bytes]) -> None:
        super().__init__(tokens)
        self._ids = {token: token_id for token_id, token in enumerate(tokens) if token}
        self.with_quotes = _chosen(tokens, lambda token: b'"' in token)
        self.with_ends = _chosen(tokens, lambda token: any(sign in token for sign in b'",]}'))
        # Tokens that may end one item and a whole one behind it, or hold a list.
        self.long = _chosen(
            tokens, lambda token: token.count(b'"') > 2 or token.count(b",") > 1 or b"[" in token
        )
        self._longest = max(map(len, tokens), default=0)

    def inside(self, text: bytes) -> Iterator[int]:
        """Yield the tokens that a text begins with."""
        for end in range(1, min(len(text), self._longest) + 1):
            token_id = self._ids.get(text[:end])
            if token_id is not None:
                yield token_id


@dataclass(slots=True)
class _List:
    """One open list: what is in it, where its last item begins, and what its schema says of it."""

    place: Place
    index: int = 0
    is_marked: bool = False
    begins: int = 0
    has_ended: bool = False
    is_spelled_once: bool = True
    is_free: bool = True
    taken: frozenset[Any] = frozenset()
    spelled: frozenset[bytes] = frozenset()
    # Beginnings of items past which more may follow than a list can have; true of all outputs.
    endless: set[bytes] = field(default_factory=set)

    def has_begun(self, item: bytes) -> bool:
        """Tell whether an item that is in the list begins so."""
        return any(one.startswith(item) for one in self.spelled)


class ItemWatch(KeyWatch):
    """Where an output of JSON stands, by a schema of which some lists are marked."""

    def __init__(self, table: ItemTable, places: ListPlaces, place: Place | None = None) -> None:
        """Stand before the output, or before a part of it that has a place of its own."""
        super().__init__(table)
        self._items = table
        self._places = places
        self._stack: list[Place | _List] = []
        self._next = places.root if place is None else place
        self._text = bytearray()
        self._key_begins = 0

    def copy(self) -> Self:
        """Return an independent watch at the same place."""
        twin = copy(self)
        self._copy_to(twin)
        twin._stack = [replace(one) if isinstance(one, _List) else one for one in self._stack]
        twin._text = bytearray(self._text)
        return twin

    def allowed(self, mask: Tensor, matcher: LLMatcher) -> Tensor:
        """Return a mask, [W] int32, without tokens that would repeat a key or an item.

        matcher: stands where the mask is for.
        """
        mask = self.filtered(mask)
        marked = self._marked()
        bits = mask.numpy()
        is_on_path = any(
            not one.is_free or not one.is_spelled_once or self._is_on_path(one) for one in marked
        )
        ends = self._items.with_quotes if self._is_in_text else self._items.with_ends
        candidates = dict.fromkeys(_set_among(bits, ends if is_on_path else self._items.long))
        if any(not one.is_free for one in marked):
            candidates |= dict.fromkeys(_set_among(bits, self._continuing(marked)))
        looks = [_MAX_LOOKS]
        left_out = [one for one in candidates if self._leads_nowhere(one, matcher, looks)]
        if not left_out:
            return mask
        changed = bits.copy().view(np.uint32)
        for token_id in left_out:
            changed[token_id >> 5] &= np.uint32(~(1 << (token_id & 31)) & 0xFFFFFFFF)
        return torch.from_numpy(changed.view(np.int32))

    def _marked(self) -> list[_List]:
        return [one for one in self._stack if isinstance(one, _List) and one.is_marked]

    def _item(self, one: _List) -> bytes:
        return bytes(self._text[one.begins :]).lstrip(b" ")

    def _is_on_path(self, one: _List) -> bool:
        return bool(one.spelled) and one.has_begun(self._item(one))

    def _continuing(self, marked: list[_List]) -> Ids:
        """Return the tokens by which an item goes on as one that is in its list."""
        found = set[int]()
        for one in marked:
            item = self._item(one)
            space = b"" if item or self._text[-1:] != b"," else b" "
            for spelled in one.spelled:
                if not one.is_free and spelled.startswith(item):
                    found.update(self._items.inside(space + spelled[len(item) :]))
        return np.fromiter(sorted(found), dtype=np.int64)

    def _leads_nowhere(self, token_id: int, matcher: LLMatcher, looks: list[int]) -> bool:
        """Tell whether a token repeats something, or only what does may follow it.

        looks: how many masks may still be made for that.
        """
        behind = self.copy()
        try:
            behind.accept(token_id)
        except KeyRepeated:
            return True
        critical = [
            one
            for one in behind._marked()
            if not one.is_free and not one.has_ended and behind._is_on_path(one)
        ]
        if not critical or looks[0] <= 0:
            return False
        item = behind._item(critical[-1])
        if item in critical[-1].endless:
            return False
        looks[0] -= 1
        ahead = matcher.deep_copy()
        if not ahead.consume_token(token_id) or ahead.is_stopped():
            return False
        bits = np.frombuffer(ahead.compute_bitmask(), dtype=np.int32)
        following = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
        if len(following) > _ENDLESS:
            critical[-1].endless.add(item)
            return False
        return all(behind._leads_nowhere(int(one), ahead, looks) for one in following)

    def follow(self, byte: int) -> None:
        """Follow one byte. Raises: KeyRepeated, ItemRepeated."""
        was_in_text, had_key, depth = self._is_in_text, self._key is not None, len(self._open)
        if not was_in_text and byte in _ENDS:
            self._end_item()
        super().follow(byte)
        self._text.append(byte)
        if len(self._open) > depth:
            self._enter(is_list=self._open[-1] is None)
        elif len(self._open) < depth:
            self._stack.pop()
            self._end_item()
        elif was_in_text and not self._is_in_text:
            if had_key:
                self._next = self._of_key()
            else:
                self._end_item()
        elif self._is_in_text and not was_in_text and self._key is not None:
            self._key_begins = len(self._text) - 1
        elif not was_in_text and byte == _COMMA:
            self._begin_item()

    def _enter(self, *, is_list: bool) -> None:
        place = self._next
        if not is_list:
            self._stack.append(place)
            return
        opened = _List(place, index=-1)
        if place and self._places.is_marked(place):
            opened.is_marked = True
            opened.is_free = self._places.is_free(place)
            opened.is_spelled_once = self._places.is_spelled_once(place)
        self._stack.append(opened)
        self._begin_item()

    def _begin_item(self) -> None:
        inside = self._stack[-1] if self._stack else None
        if isinstance(inside, _List):
            inside.index += 1
            inside.begins, inside.has_ended = len(self._text), False
            self._next = self._places.of_item(inside.place, inside.index) if inside.place else ()

    def _of_key(self) -> Place:
        """Return the place of the value behind a key that has just ended."""
        place = self._stack[-1]
        if not place or isinstance(place, _List):
            return ()
        return self._places.of_key(place, json.loads(self._text[self._key_begins :]))

    def _end_item(self) -> None:
        """Add the item that ends here to its list. Raises: ItemRepeated."""
        inside = self._stack[-1] if self._stack else None
        if not isinstance(inside, _List) or not inside.is_marked or inside.has_ended:
            return
        item = self._item(inside)
        if not item:
            return
        identity = _identity(json.loads(item, parse_int=_number, parse_float=_number))
        if identity in inside.taken:
            raise ItemRepeated(f"the item {item.decode(errors='replace')} comes twice")
        inside.has_ended = True
        inside.taken |= {identity}
        inside.spelled |= {item}


def _identity(value: Any) -> Any:
    """Return what is equal for equal items, of numbers read by `_number`."""
    if isinstance(value, list):
        return ("array", tuple(map(_identity, value)))
    if isinstance(value, dict):
        return ("object", frozenset((key, _identity(inner)) for key, inner in value.items()))
    return value


def _number(text: str) -> tuple[str, float]:
    """Return a number as readers see it: as a double."""
    return ("number", float(text))


def _chosen(tokens: list[bytes], is_wanted: Callable[[bytes], bool]) -> Ids:
    ids = [token_id for token_id, token in enumerate(tokens) if is_wanted(token)]
    return np.array(ids, dtype=np.int64)


def _set_among(bits: np.ndarray[Any, np.dtype[np.int32]], ids: Ids) -> list[int]:
    """Return those of some tokens that a mask allows."""
    inside = ids[ids < 32 * len(bits)]
    found: list[int] = inside[bits[inside >> 5] >> (inside & 31) & 1 != 0].tolist()
    return found
