"""The command `tokenbus`: reads arguments, imports the sub-command on use, turns errors into codes.

Exit codes: 0 done, 1 the work failed, 2 wrong input or a missing extra, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130

_REDIS_HELP = (
    "redis://, rediss://, unix:// or embedded:///path "
    "(default: TOKENBUS_REDIS_URL, else redis://127.0.0.1:6379/0)"
)
_POOL_HELP = "name of the pool: the workers that serve one model (default: default)"
_MODEL_HELP = "alias, local folder or hub id (default: smollm2-135m)"


class _Parser(argparse.ArgumentParser):
    """Answers wrong input in one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and leave with code 2."""
        self.exit(EXIT_WRONG_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and leave."""
        from importlib.metadata import version

        parser.exit(0, f"tokenbus {version('tokenbus')}\n")


def _bounded[T: (int, float)](kind: type[T], low: float, high: float) -> Callable[[str], T]:
    """Make an argument type that names its bounds when a value is outside them."""

    def parse(text: str) -> T:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            word = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {word} from {low:g} to {high:g}")
        return value

    return parse
