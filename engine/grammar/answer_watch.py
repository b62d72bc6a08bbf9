"""Keys in answers that are more than JSON: calls, reasoning before them, arguments between tags.

An answer is followed byte by byte beside its grammar, which holds to the form: what begins as a
call is one. So it is enough to know the marks; where JSON begins, a `KeyWatch` follows it, or an
`ItemWatch` where a schema asks for lists without equal items.

It is one file because it is one machine: each of its phases leads to the next.
"""

from __future__ import annotations

import re
from copy import copy
from enum import Enum, auto
from types import MappingProxyType
from typing import TYPE_CHECKING

from tokenbus.engine.grammar.schema.key_watch import KeyRepeated, KeyWatch, cleared
from tokenbus.engine.grammar.watching.answer_lists import AnswerLists
from tokenbus.engine.grammar.watching.item_watch import ItemWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from llguidance import LLMatcher
    from torch import Tensor

    from tokenbus.engine.grammar.watching.braced_keys import BracedKeys
    from tokenbus.engine.grammar.watching.item_watch import ItemTable
    from tokenbus.engine.grammar.watching.list_places import ListPlaces
    from tokenbus.engine.grammar.watching.watched_answer import WatchedAnswer

# Bytes that are looked back at: more than any mark has, or what begins a call without one.
_LOOK_BACK = 512
_BRACKETS = b"{["
_SPACE = b" \t\r\n"
# What ends the name of an argument or of a tool between tags.
_NAME_ENDS = b'<>"\n'
_HEADER_MARKS = (b"<|start|>", b"<|channel|>")
_MESSAGE = b"<|message|>"
_CALLED = re.compile(rb"to=functions\.([A-Za-z0-9_.-]+)")


class _Phase(Enum):
    """Where an answer stands."""

    BEGIN = auto()
    REASONING = auto()
    HEADER = auto()
    ANSWER = auto()
    JSON = auto()
    CALLS = auto()
    TAGS = auto()
    TOOL = auto()
    NAME = auto()
    NAME_CLOSE = auto()
    VALUE = auto()
    FREE = auto()


_WATCHED = frozenset({_Phase.JSON, _Phase.CALLS, _Phase.VALUE})
_BEFORE_CONTENT = frozenset({_Phase.BEGIN, _Phase.ANSWER, _Phase.JSON})
_NAMING = frozenset({_Phase.TAGS, _Phase.NAME})


class MarkInContent(KeyRepeated):
    """A mark has come inside JSON that is content: a reader would take it for one."""


class _Marks:
    """The marks of a form without white space, as bytes."""

    def __init__(self, form: WatchedAnswer) -> None:
        self.opens = [_solid(mark) for mark in form.opens]
        self.closes = [_solid(mark) for mark in form.closes]
        self.frame = [_solid(mark) for mark in form.frame]
        self.calls = [_solid(mark) for mark in form.marks]
        self.barred = [mark.encode() for mark in form.barred]
        self.head = re.compile(form.head.encode()) if form.head else None
        tags = form.tags
        self.call = _solid(tags.call) if tags else b""
        self.open = _solid(tags.open) if tags else b""
        self.name_closes = [_solid(close) for close in tags.name_closes] if tags else []
        self.string_close = _solid(tags.string_close) if tags else b""
        self.close = _solid(tags.close) if tags else b""


class AnswerWatch:
    """Where an answer stands, with the keys of the JSON that it is in."""

    def __init__(
        self, table: ItemTable, form: WatchedAnswer, content: ListPlaces | None = None
    ) -> None:
        """Stand before the answer; `content` are the places of JSON that is no call."""
        self._table = table
        self._form = form
        self._marks = _Marks(form)
        self._lists = AnswerLists(table, form, content)
        self._keys: KeyWatch | BracedKeys = KeyWatch(table)
        # What came since the phase began, and the same without white space.
        self._text, self._solid = bytearray(), bytearray()
        self._names: set[bytes] = set()
        self._tool = self._argument = ""
        self._is_text = self._has_value = self._is_cut = False
        if form.starts_inside:
            self._phase = _Phase.REASONING
        else:
            self._phase = _Phase.HEADER if form.has_channels else _Phase.BEGIN

    def copy(self) -> AnswerWatch:
        """Return an independent watch at the same place."""
        twin = copy(self)
        twin._keys, twin._names = self._keys.copy(), set(self._names)
        twin._text, twin._solid = self._text[:], self._solid[:]
        return twin

    def accept(self, token_id: int) -> None:
        """Follow one token. Raises: KeyRepeated."""
        if token_id < len(self._table.tokens):
            for byte in self._table.tokens[token_id]:
                self._follow(byte)

    def allowed(self, mask: Tensor, matcher: LLMatcher) -> Tensor:
        """Return a mask, [W] int32, without what would repeat a key, a name or an item.

        matcher: stands where the mask is for.
        """
        keys = self._keys
        if self._phase in _WATCHED and not self._is_text:
            mask = (
                keys.allowed(mask, matcher) if isinstance(keys, ItemWatch) else keys.filtered(mask)
            )
        candidates: Iterable[int] = ()
        if self._phase in _BEFORE_CONTENT and self._form.is_json:
            candidates = self._ending_marks()
        elif self._phase in _NAMING and self._names:
            candidates = self._ending_names()
        return cleared(mask, candidates, self)

    def _ending_marks(self) -> Iterator[int]:
        """Yield the tokens that may bring a mark to its end."""
        for mark in self._marks.barred:
            yield from self._table.holding(mark)
            for size in _begun(self._text, mark):
                yield from self._table.beginning(mark[size:])

    def _ending_names(self) -> Iterator[int]:
        """Yield the tokens that may end a name which was there."""
        if self._phase is _Phase.NAME:
            begun = bytes(self._text)
            rests = [name[len(begun) :] for name in self._names if name.startswith(begun)]
        else:
            opening = self._marks.open
            sizes = (0, *_begun(self._solid, opening))
            rests = [opening[size:] + name for size in sizes for name in self._names]
        for rest in rests:
            for end in _NAME_ENDS:
                yield from self._table.beginning(rest + bytes([end]))

    def _follow(self, byte: int) -> None:
        follow = _STEPS.get(self._phase)
        if follow is None:
            return
        self._text.append(byte)
        if byte not in _SPACE:
            self._solid.append(byte)
        if len(self._text) > 2 * _LOOK_BACK:
            self._is_cut = True
            del self._text[:-_LOOK_BACK], self._solid[:-_LOOK_BACK]
        follow(self, byte)

    def _move(self, phase: _Phase) -> None:
        self._phase, self._has_value, self._is_cut = phase, False, False
        if phase is _Phase.CALLS:
            self._keys = self._lists.of_calls()
        elif phase is _Phase.JSON:
            self._keys = self._lists.of_content()
        self._text.clear()
        self._solid.clear()

    def _replay(self, phase: _Phase) -> None:
        """Take the text so far for the beginning of another phase."""
        text = bytes(self._text)
        self._move(phase)
        for byte in text:
            self._follow(byte)

    def _ends_in(self, marks: Iterable[bytes]) -> bool:
        return any(map(self._solid.endswith, marks))

    def _may_become(self, marks: Iterable[bytes]) -> bool:
        begun = bytes(self._solid)
        return any(mark.startswith(begun) for mark in marks)

    def _begin(self, _: int) -> None:
        """Wait for a mark that opens reasoning; what is none belongs to the answer."""
        if self._ends_in(self._marks.opens):
            self._move(_Phase.REASONING)
        elif self._solid and not self._may_become(self._marks.opens):
            self._replay(_Phase.ANSWER)

    def _reason(self, _: int) -> None:
        if self._form.has_channels:
            if self._ends_in(_HEADER_MARKS):
                self._move(_Phase.HEADER)
        elif self._ends_in(self._marks.closes):
            self._move(_Phase.ANSWER)
        elif self._form.is_closed_by_calls:
            self._open_calls()

    def _head(self, _: int) -> None:
        """Read a header; where the message goes tells what it is."""
        if not self._ends_in((_MESSAGE,)):
            return
        header = bytes(self._text)
        is_final = b"final" in header
        if b"to=" in header:
            self._move(_Phase.CALLS)
            called = _CALLED.search(header)
            self._tool = called[1].decode() if called else ""
        else:
            self._move(_Phase.JSON if self._form.is_json and is_final else _Phase.REASONING)

    def _answer(self, _: int) -> None:
        """Read up to what begins calls, or content that is JSON."""
        marks = self._marks
        if self._open_calls():
            return
        if marks.head and not self._is_cut and marks.head.fullmatch(self._text):
            self._replay(_Phase.CALLS)
        elif self._ends_in(marks.frame):
            self._move(_Phase.ANSWER)
        elif (
            self._form.is_json
            and self._solid
            and not self._may_become([*marks.calls, *marks.frame])
        ):
            self._replay(_Phase.JSON)

    def _open_calls(self) -> bool:
        """Go on in calls where the text ends in a mark that opens them."""
        marks = self._marks
        if not self._ends_in(marks.calls):
            return False
        if self._form.tags is None:
            self._move(_Phase.CALLS)
        else:
            self._move(_Phase.TOOL if self._ends_in((marks.call,)) else _Phase.TAGS)
        return True

    def _json(self, byte: int) -> None:
        if self._keys.is_inside and any(map(self._text.endswith, self._marks.barred)):
            raise MarkInContent("a mark comes inside of content")
        self._keys.follow(byte)

    def _call(self, byte: int) -> None:
        """Read calls whose arguments are JSON; what stands between them has no brackets."""
        if self._form.has_channels and self._ends_in(_HEADER_MARKS):
            self._move(_Phase.HEADER)
            return
        if self._form.may_be_python and not self._has_value:
            if byte not in _BRACKETS and byte not in _SPACE:
                self._phase = _Phase.FREE
                return
            self._has_value = byte == _BRACKETS[0]
        if not self._keys.is_inside:
            if byte not in self._lists.begins:
                return
            if self._form.has_channels:
                self._keys = self._lists.of_tool(self._tool)
            else:
                self._keys = self._lists.of_arguments(bytes(self._solid)) or self._keys
            self._text.clear()
            self._solid.clear()
        self._keys.follow(byte)

    def _tags(self, _: int) -> None:
        if self._ends_in((self._marks.call,)):
            self._move(_Phase.TOOL)
        elif self._ends_in((self._marks.open,)):
            self._move(_Phase.NAME)

    def _name_tool(self, byte: int) -> None:
        if byte in _NAME_ENDS:
            self._tool = self._text[:-1].decode(errors="replace").strip()
            self._names.clear()
            self._move(_Phase.TAGS)
            # It may begin the tag of an argument.
            self._follow(byte)

    def _name(self, byte: int) -> None:
        if byte not in _NAME_ENDS:
            return
        tags, name = self._form.tags, bytes(self._text[:-1]).strip()
        assert tags is not None
        told = name.decode(errors="replace")
        if name in self._names:
            raise KeyRepeated(f"the argument {told!r} comes twice")
        self._names.add(name)
        self._argument = told
        self._is_text = told in tags.texts.get(self._tool, ())
        self._move(_Phase.NAME_CLOSE)
        self._follow(byte)

    def _close_name(self, _: int) -> None:
        marks = self._marks
        if self._ends_in(marks.name_closes):
            is_string = bool(marks.string_close) and self._ends_in((marks.string_close,))
            self._is_text = self._is_text or is_string
            self._keys = self._lists.of_value(self._tool, self._argument)
            self._move(_Phase.VALUE)

    def _value(self, byte: int) -> None:
        """Read a value; one that does not begin as an object or a list has no keys."""
        if self._ends_in((self._marks.close,)):
            self._is_text = False
            self._move(_Phase.TAGS)
            return
        if not self._has_value and byte not in _SPACE:
            self._has_value = True
            self._is_text = self._is_text or byte not in _BRACKETS
        if not self._is_text and (self._keys.is_inside or byte in _BRACKETS):
            self._keys.follow(byte)


_STEPS: Mapping[_Phase, Callable[[AnswerWatch, int], None]] = MappingProxyType(
    {
        _Phase.BEGIN: AnswerWatch._begin,
        _Phase.REASONING: AnswerWatch._reason,
        _Phase.HEADER: AnswerWatch._head,
        _Phase.ANSWER: AnswerWatch._answer,
        _Phase.JSON: AnswerWatch._json,
        _Phase.CALLS: AnswerWatch._call,
        _Phase.TAGS: AnswerWatch._tags,
        _Phase.TOOL: AnswerWatch._name_tool,
        _Phase.NAME: AnswerWatch._name,
        _Phase.NAME_CLOSE: AnswerWatch._close_name,
        _Phase.VALUE: AnswerWatch._value,
    }
)


def _solid(mark: str) -> bytes:
    """Return a mark without its white space."""
    return "".join(mark.split()).encode()


def _begun(text: bytearray, mark: bytes) -> list[int]:
    """Return how much of a mark a text may end in."""
    return [size for size in range(1, len(mark)) if text.endswith(mark[:size])]
