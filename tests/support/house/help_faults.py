"""What a help owes to whoever has never seen the command: purpose, example, units, defaults."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

# What the name of an option with a number ends in or holds, and the word for it in the help.
_UNITS = (
    (r"(per-s|rate)$", r"\b(a|per) second\b"),
    (r"-ms$", r"\bmilliseconds\b"),
    (r"-s$", r"\bseconds?\b"),
    (r"-gib$", r"\bGiB\b"),
    (r"tokens|-len$", r"\btokens?\b"),
    (r"-port$|^--port$", r"\bport\b"),
)
# Texts that are read as numbers, or lists of them.
_NUMBERS = {"_seconds", "_range", "_counts", "_shares"}


def faults_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return what the help of a command does not say, in its order."""
    return [*_faults_of_text(parser), *_faults_of_options(parser)]


def _faults_of_text(parser: argparse.ArgumentParser) -> Iterator[str]:
    purpose = " ".join((parser.description or "").split())
    if not re.match(r"[A-Z][^.:]{10,160}[.:]", purpose):
        yield f"purpose: {purpose!r} does not begin with a sentence that says it"
    command = re.escape(parser.prog)
    if not re.search(rf"example:\s+{command}\b", parser.epilog or ""):
        yield f"example: {parser.epilog!r} has none of {parser.prog}"


def _faults_of_options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        option = next(iter(action.option_strings), "")
        if not option or action.nargs == 0:
            continue
        told = str(action.help)
        if not re.search(r"\((default|required)\b", told):
            yield f"{option}: {told!r} has no default"
        elif action.type in (int, float) or getattr(action.type, "__name__", "") in _NUMBERS:
            unit = next((word for name, word in _UNITS if re.search(name, option)), r"\b\w{3,}")
            if not re.search(unit, told):
                yield f"{option}: {told!r} does not say what is counted"
