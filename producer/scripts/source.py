"""Scripts as text: parts put together, keys filled in, arguments named.

A part is a file under `lua/`: an entry point, or a library of `lua/lib/`. It begins with its
header, lines of

    --@args worker pages:number     an entry point's arguments in the order of the call
    --@offers now_ms ring           a library's names for others; its other names are its own
    --@use base: now_ms ring        names of a library that the part uses, one line per library
    --@keys pool shard              an entry point for one server alone: it is called with both tags

The typed calls give arguments by these names, in this order. An argument is text unless it is said
to be a `number`, a `flag` (true for "1"), `unused`, or the `rest`, which comes last: the index from
which on the script reads `ARGV` itself.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import chain
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.keys import CHANNELS, LOG_KEYS, POOL_KEYS, database_mark

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.resources.abc import Traversable

Argument = str | bytes | int | float
_KEY_NAME = re.compile(r"\b([KL])\.(\w+)")
_TABLES = {"K": POOL_KEYS, "L": LOG_KEYS}
_SUFFIXES = POOL_KEYS | LOG_KEYS
# How a script reads an argument of each kind.
_READ = {
    "text": "ARGV[{}]",
    "number": "tonumber(ARGV[{}])",
    "flag": "ARGV[{}] == '1'",
    "unused": "",
    "rest": "{}",
}


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a script: name and kind, in the order of the call."""

    script: str
    kinds: Mapping[str, str]

    def pack(self, given: Mapping[str, Any]) -> list[Argument]:
        """Return the arguments of a call as the server gets them.

        Raises: TypeError, if they are others or in another order.
        """
        if list(given) != list(self.kinds):
            raise TypeError(
                f"{self.script}.lua takes {', '.join(self.kinds)}; given are {', '.join(given)}"
            )
        args: list[Argument] = []
        for value, kind in zip(given.values(), self.kinds.values(), strict=True):
            if kind == "flag":
                args.append(int(value))
            elif kind == "rest":
                args += value
            else:
                args.append(value)
        return args

    @property
    def names(self) -> list[str]:
        """Return the names that the script gets."""
        return [name for name, kind in self.kinds.items() if kind != "unused"]

    def lua(self) -> str:
        """Return the statement that gives the arguments their names."""
        values = [
            _READ[kind].format(at)
            for at, kind in enumerate(self.kinds.values(), start=1)
            if kind != "unused"
        ]
        return f"local {', '.join(self.names)} = {', '.join(values)}" if values else ""


@dataclass(frozen=True, slots=True)
class Part:
    """One file: what its header says, and the text below the header."""

    name: str
    flags: str
    signature: Signature
    offers: tuple[str, ...]
    uses: Mapping[str, tuple[str, ...]]
    body: str
    first_line: int
    spans_slots: bool = False


@cache
def read_part(name: str) -> Part:
    """Read the part `name`; that of a library begins with `lib/`. Raises: ValueError."""
    return parse_part(name, (_folder() / f"{name}.lua").read_text(encoding="utf-8"))


def parse_part(name: str, text: str) -> Part:
    """Read a part's header. Raises: ValueError."""
    lines = text.splitlines()
    flags = lines.pop(0) if text.startswith("#!") else ""
    kinds: dict[str, str] = {}
    offers: list[str] = []
    uses: dict[str, tuple[str, ...]] = {}
    first_line = 1 + bool(flags)
    spans_slots = False
    while lines and lines[0].startswith("--@"):
        word, *said = lines.pop(0).split()
        first_line += 1
        if word == "--@args" and flags:
            kinds |= dict(_argument(name, argument) for argument in said)
        elif word == "--@offers" and not flags:
            offers += said
        elif word == "--@keys" and flags and said == ["pool", "shard"]:
            spans_slots = True
        elif word == "--@use" and len(said) > 1 and said[0].endswith(":"):
            uses[f"lib/{said[0][:-1]}"] = tuple(said[1:])
        else:
            raise ValueError(f"{name}.lua: {word} {' '.join(said)}")
    body = _KEY_NAME.sub(_key, "\n".join(lines))
    signature = Signature(name, kinds)
    return Part(name, flags, signature, tuple(offers), uses, body, first_line, spans_slots)


def libraries(name: str) -> list[Part]:
    """Return the libraries of a script, each once and behind those it uses itself.

    Raises: ValueError, if a name that is used is not offered or libraries use each other.
    """
    found: dict[str, Part] = {}
    _visit(read_part(name), found, ())
    return list(found.values())


@cache
def script_source(name: str, database: int = 0) -> str:
    """Return the whole script: its flags, its arguments, its libraries and itself.

    `K.<name>` has become the pool's key of that name, `L.<name>` the shard's; a prefix where it
    ends in a colon. The one tag of a call is `KEYS[1]`, the shard's `KEYS[2]` beside the pool's.
    Channels are those of the logical database, which a script cannot ask for.
    """
    part = read_part(name)
    bodies = (library.body for library in libraries(name))
    parts = chain((part.flags, part.signature.lua()), bodies, (part.body,))
    text = "\n".join(filter(None, parts))
    if part.spans_slots:
        for suffix in LOG_KEYS.values():
            text = text.replace(_name(suffix), _name(suffix, 2))
    for suffix in (_SUFFIXES[channel] for channel in CHANNELS):
        for tag in (1, 2):
            marked = _name(f"{database_mark(database)}{suffix}", tag)
            text = text.replace(_name(suffix, tag), marked)
    return text


@cache
def script_sha(name: str, database: int = 0) -> str:
    """Return the digest by which the server knows the script of a logical database."""
    return hashlib.sha1(script_source(name, database).encode(), usedforsecurity=False).hexdigest()


def _folder() -> Traversable:
    return resources.files("tokenbus.producer.scripts") / "lua"


def _argument(script: str, said: str) -> tuple[str, str]:
    name, _, kind = said.partition(":")
    if (kind or "text") not in _READ:
        raise ValueError(f"{script}.lua: argument {said}: a kind is one of {', '.join(_READ)}")
    return name, kind or "text"


def _key(match: re.Match[str]) -> str:
    return _name(_TABLES[match[1]][match[2]])


def _name(suffix: str, tag: int = 1) -> str:
    return f'(KEYS[{tag}].."{suffix}")'


def _visit(part: Part, found: dict[str, Part], path: tuple[str, ...]) -> None:
    """Add what a part uses, and what that uses before it."""
    for name, used in part.uses.items():
        library = read_part(name)
        if missing := set(used).difference(library.offers):
            raise ValueError(f"{part.name}.lua: {name} offers no {', '.join(sorted(missing))}")
        if name in path:
            raise ValueError(f"{name}.lua uses itself by way of {part.name}.lua")
        if name not in found:
            _visit(library, found, (*path, name))
            found[name] = library
