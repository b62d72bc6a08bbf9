"""Trees of patterns written in the library's syntax."""

from __future__ import annotations

from tokenbus.engine.grammar.patterns.pattern_tree import (
    CONTROLS,
    Chain,
    Chars,
    Edge,
    Either,
    LookAhead,
    LookBehind,
    PatternRefused,
    Ranges,
    Repeat,
    Tree,
    WordEdge,
    complement,
)

_SPECIAL = frozenset(r"\.+*?()|[]{}^$#&-~/")


def write_pattern(tree: Tree) -> str:
    """Write a tree that looks nowhere around.

    Raises: PatternRefused.
    """
    if isinstance(tree, Chars):
        return _write_chars(tree)
    if isinstance(tree, Chain):
        return "".join(
            f"(?:{write_pattern(item)})" if isinstance(item, Either) else write_pattern(item)
            for item in tree.items
        )
    if isinstance(tree, Either):
        return "|".join(map(write_pattern, tree.items))
    if isinstance(tree, Repeat):
        return f"(?:{write_pattern(tree.item)}){_count(tree.least, tree.most)}"
    if isinstance(tree, Edge):
        return "^" if tree.is_begin else "$"
    raise PatternRefused("look-around")


def looks_around(tree: Tree) -> bool:
    """Tell whether a tree looks around somewhere, ahead or behind."""
    if isinstance(tree, Chain | Either):
        return any(map(looks_around, tree.items))
    if isinstance(tree, Repeat):
        return looks_around(tree.item)
    return isinstance(tree, LookAhead | LookBehind | WordEdge)


def write_ranges(ranges: Ranges) -> str:
    """Write one character out of ranges, control characters left out of a choice."""
    if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
        return _character(ranges[0][0])
    kept = _without_controls(ranges)
    if not kept:
        raise PatternRefused("a choice of control characters alone")
    return f"[{_inside(kept)}]"


def _write_chars(chars: Chars) -> str:
    if not chars.properties:
        return write_ranges(chars.ranges)
    if not chars.is_negated:
        if not chars.ranges and len(chars.properties) == 1:
            return chars.properties[0]
        return f"[{_inside(chars.ranges)}{''.join(chars.properties)}]"
    return f"[^{_inside(chars.ranges)}{''.join(chars.properties)}{_inside(CONTROLS)}]"


def _without_controls(ranges: Ranges) -> Ranges:
    kept = []
    for low, high in ranges:
        for begin, end in complement(CONTROLS):
            if max(low, begin) <= min(high, end):
                kept.append((max(low, begin), min(high, end)))
    return tuple(kept)


def _inside(ranges: Ranges) -> str:
    return "".join(
        _character(low) if low == high else f"{_character(low)}-{_character(high)}"
        for low, high in ranges
    )


def _character(code: int) -> str:
    if chr(code) in _SPECIAL:
        return "\\" + chr(code)
    if code in (9, 10, 13):
        return {9: r"\t", 10: r"\n", 13: r"\r"}[code]
    if code < 32 or code == 127:
        return f"\\u{{{code:x}}}"
    return chr(code)


def _count(least: int, most: int | None) -> str:
    if (least, most) in ((0, None), (1, None), (0, 1)):
        return {(0, None): "*", (1, None): "+", (0, 1): "?"}[least, most]
    return f"{{{least}}}" if least == most else f"{{{least},{'' if most is None else most}}}"
