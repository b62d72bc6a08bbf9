r"""Patterns read into trees: ECMA-262's syntax, as JSON Schema asks.

`\d` and `\w` are ASCII, `\s` is the white space of ECMA-262, `.` is everything but its line ends.
A class that names control characters is refused: the library matches escaped spellings, and takes
such a class for one of every character with an escape. They are taken out of complements.
It is one noun: the tree of a pattern, with the one reader that makes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

Ranges = tuple[tuple[int, int], ...]

LAST = 0x10FFFF
# All control characters but tab, line feed and carriage return.
CONTROLS: Ranges = ((0, 8), (0x0B, 0x0C), (0x0E, 0x1F))
_DIGIT: Ranges = ((0x30, 0x39),)
WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = (
    (9, 13), (0x20, 0x20), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
    (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000), (0xFEFF, 0xFEFF),
)  # fmt: skip
_LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
_ESCAPES = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}
_HEX = re.compile(r"x([0-9A-Fa-f]{2})|[ux]\{([0-9A-Fa-f]{1,6})\}|u([0-9A-Fa-f]{4})|c([A-Za-z])")
_LOW_SURROGATE = re.compile(r"\\u([dD][c-fC-F][0-9A-Fa-f]{2})")
_COUNT = re.compile(r"\{(\d+)(,(\d*))?\}")
_GROUP = re.compile(r"\?(:|=|!|<=|<!|P?<[A-Za-z_]\w*>)?")
_PROPERTY = re.compile(r"[pP](\{[^}]*\}|[A-Z])")
# Unicode properties that hold no control character, and those whose complement holds the quote.
_WITHOUT_CONTROLS = re.compile(
    r"\{?([LMNPSZ][a-z]?|[A-Z][a-z]{3,}|(sc|scx|Script)=\w+"
    r"|Emoji(_Presentation|_Modifier|_Modifier_Base|_Component)?|Extended_Pictographic|Regional_Indicator)\}?"
)
_WITH_CONTROLS = {"Other", "Control", "Common", "Assigned"}
_COMPLEMENT_HAS_QUOTES = re.compile(r"\{?[LNMZ][a-z]?\}?")
_MAX_DEPTH = 60


class PatternRefused(ValueError):
    """A pattern uses something that would not be enforced; the message says what."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of ranges; `properties` are Unicode properties beside them."""

    ranges: Ranges
    properties: tuple[str, ...] = ()
    is_negated: bool = False


@dataclass(frozen=True, slots=True)
class Chain:
    """Trees one after the other; none is the empty text."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """One of several trees."""

    items: tuple[Tree, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """A tree some times over; `most` None is without end."""

    item: Tree
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Edge:
    """The beginning of the text, or its end."""

    is_begin: bool


@dataclass(frozen=True, slots=True)
class LookAhead:
    """What has to follow here, or must not."""

    item: Tree
    is_negated: bool


@dataclass(frozen=True, slots=True)
class LookBehind:
    """What has to precede here, or must not."""

    item: Tree
    is_negated: bool


@dataclass(frozen=True, slots=True)
class WordEdge:
    """A place between a character of a word and another one, or none of these."""

    is_negated: bool


Tree = Chars | Chain | Either | Repeat | Edge | LookAhead | LookBehind | WordEdge


def merged(ranges: list[tuple[int, int]]) -> Ranges:
    """Return ranges in order, none touching the next."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return tuple(found)


def complement(ranges: Ranges) -> Ranges:
    """Return every character outside of ranges."""
    found, at = [], 0
    for low, high in ranges:
        if at < low:
            found.append((at, low - 1))
        at = high + 1
    if at <= LAST:
        found.append((at, LAST))
    return tuple(found)


def read_pattern(pattern: str) -> Tree:
    """Read a pattern.

    Raises: PatternRefused.
    """
    return _Reader(pattern).read()


class _Reader:
    """Reads one pattern from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> Tree:
        tree = self._either(0)
        if self._at < len(self._text):
            raise PatternRefused("a closing bracket without its opening one")
        return tree

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _either(self, depth: int) -> Tree:
        if depth > _MAX_DEPTH:
            raise PatternRefused(f"nesting deeper than {_MAX_DEPTH}")
        options = [self._sequence(depth)]
        while self._peek() == "|":
            self._at += 1
            options.append(self._sequence(depth))
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _sequence(self, depth: int) -> Tree:
        items: list[Tree] = []
        while self._peek() not in ("", "|", ")"):
            items.append(self._counted(self._atom(depth)))
        return items[0] if len(items) == 1 else Chain(tuple(items))

    def _counted(self, item: Tree) -> Tree:
        sign, counts = self._peek(), _COUNT.match(self._text, self._at)
        if sign in ("*", "+", "?") and sign:
            self._at += 1
            least, most = (1 if sign == "+" else 0), (1 if sign == "?" else None)
        elif counts:
            self._at = counts.end()
            least = int(counts[1])
            most = least if counts[2] is None else int(counts[3]) if counts[3] else None
        else:
            return item
        if isinstance(item, Edge | LookAhead | LookBehind | WordEdge):
            raise PatternRefused("a repeated assertion")
        if most is not None and most < least:
            raise PatternRefused("a repetition whose bounds are out of order")
        if self._peek() == "?":
            self._at += 1
        if self._peek() in ("*", "+", "?") and self._peek():
            raise PatternRefused("a repeated repetition")
        return Repeat(item, least, most)

    def _atom(self, depth: int) -> Tree:
        character = self._text[self._at]
        self._at += 1
        if character == "(":
            return self._group(depth)
        if character == "[":
            return self._class()
        if character == "\\":
            return self._escape()
        if character == ".":
            return Chars(complement(_LINE_ENDS))
        if character in "^$":
            return Edge(character == "^")
        if character in "*+?":
            raise PatternRefused("a repetition of nothing")
        return _one(ord(character))

    def _group(self, depth: int) -> Tree:
        kind = ""
        if self._peek() == "?":
            found = _GROUP.match(self._text, self._at)
            assert found is not None
            kind, self._at = found[1] or "", found.end()
            if not kind:
                raise PatternRefused("a flag")
        tree = self._either(depth + 1)
        if self._peek() != ")":
            raise PatternRefused("a bracket without its closing one")
        self._at += 1
        if kind in ("<=", "<!"):
            return LookBehind(tree, kind == "<!")
        return LookAhead(tree, kind == "!") if kind in ("=", "!") else tree

    def _escape(self) -> Tree:
        if found := _PROPERTY.match(self._text, self._at):
            self._at = found.end()
            return Chars((), (_property(found),))
        if self._peek() in "bB" and self._peek():
            self._at += 1
            return WordEdge(self._text[self._at - 1] == "B")
        if self._peek() in "123456789kAzZG" and self._peek():
            raise PatternRefused(f"the escape \\{self._peek()}")
        return Chars(self._escaped())

    def _escaped(self) -> Ranges:
        """Return the characters of an escape that stands for some."""
        sign = self._peek()
        if not sign:
            raise PatternRefused("an escape of nothing")
        found = _HEX.match(self._text, self._at)
        if found:
            self._at = found.end()
            if found[4]:
                return ((ord(found[4]) % 32,) * 2,)
            return (self._with_surrogate(int(found[1] or found[2] or found[3], 16)),)
        self._at += 1
        for shorthand, ranges in (("d", _DIGIT), ("w", WORD), ("s", _SPACE)):
            if sign == shorthand:
                return ranges
            if sign == shorthand.upper():
                return complement(ranges)
        if sign in _ESCAPES:
            return ((_ESCAPES[sign],) * 2,)
        if sign.isalnum():
            raise PatternRefused(f"the escape \\{sign}")
        return ((ord(sign),) * 2,)

    def _with_surrogate(self, code: int) -> tuple[int, int]:
        if 0xD800 <= code < 0xDC00 and (low := _LOW_SURROGATE.match(self._text, self._at)):
            self._at = low.end()
            code = 0x10000 + ((code - 0xD800) << 10) + (int(low[1], 16) - 0xDC00)
        if 0xD800 <= code < 0xE000 or code > LAST:
            raise PatternRefused("a code point that is no character")
        return code, code

    def _class(self) -> Chars:
        is_negated = self._peek() == "^"
        self._at += is_negated
        ranges: list[tuple[int, int]] = []
        named: list[tuple[int, int]] = []
        properties: list[str] = []
        # A bracket that comes first stands for itself, as elsewhere than in ECMA-262.
        begins = self._at
        while True:
            self._check_class_sign(begins)
            if self._peek() == "]" and self._at > begins:
                self._at += 1
                break
            if self._peek() == "\\" and (found := _PROPERTY.match(self._text, self._at + 1)):
                self._at = found.end()
                properties.append(_property(found))
                continue
            item = self._class_item()
            ranges += item
            named += item if len(item) == 1 else ()
        found_ranges = merged(ranges)
        if not is_negated and any(map(_names_control, named)):
            raise PatternRefused("control characters in a character class")
        if properties:
            return Chars(found_ranges, tuple(properties), is_negated)
        return Chars(complement(found_ranges) if is_negated else found_ranges)

    def _check_class_sign(self, begins: int) -> None:
        if not self._peek():
            raise PatternRefused("a character class without its closing bracket")
        if self._peek() == "[":
            raise PatternRefused("a character class inside another")
        if self._text[self._at : self._at + 2] in ("&&", "--", "~~") and self._at > begins:
            raise PatternRefused("an operation on character classes")

    def _class_item(self) -> Ranges:
        low = self._class_chars()
        is_range = self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", "")
        if not is_range or len(low) != 1 or low[0][0] != low[0][1]:
            return low
        self._at += 1
        high = self._class_chars()
        if len(high) != 1 or high[0][0] != high[0][1] or high[0][0] < low[0][0]:
            raise PatternRefused("a range that is out of order")
        return ((low[0][0], high[0][0]),)

    def _class_chars(self) -> Ranges:
        sign = self._peek()
        self._at += 1
        if sign == "\\":
            if self._peek() == "b":
                raise PatternRefused("control characters in a character class")
            return self._escaped()
        return ((ord(sign),) * 2,)


def _names_control(one: tuple[int, int]) -> bool:
    """Tell whether a range holds a control character other than tab and line ends."""
    return any(code not in (9, 10, 13) for code in range(one[0], min(one[1], 31) + 1))


def _one(code: int) -> Chars:
    return Chars(((code, code),))


def _property(found: re.Match[str]) -> str:
    """Return a property as it is written. Raises: PatternRefused if it would leak controls."""
    sign, name = found[0][0], found[1]
    if sign == "P":
        if not _COMPLEMENT_HAS_QUOTES.fullmatch(name):
            raise PatternRefused(f"the complement \\P{name}")
    elif not _WITHOUT_CONTROLS.fullmatch(name) or name.strip("{}") in _WITH_CONTROLS:
        raise PatternRefused(f"the property \\p{name}")
    return f"\\{sign}{name}"
