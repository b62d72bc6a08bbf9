"""The parser of a bench's options, and how its command line is shown: without passwords."""

from __future__ import annotations

import argparse
import shlex
from typing import TYPE_CHECKING, NoReturn

from tokenbus.producer.server.shown_url import hide_in_text, hide_password
from tokenbus.producer.terminal import visible

if TYPE_CHECKING:
    from collections.abc import Sequence


class OptionParser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the passwords of URLs in it."""

    def error(self, message: str) -> NoReturn:
        """Leave with code 2."""
        self.exit(2, f"{self.prog}: {visible(hide_in_text(message))} (see {self.prog} --help)\n")


def shown_command(argv: Sequence[str], *words: str) -> list[str]:
    """Return a command line as reports may show it: its words, then its arguments."""
    return [*words, *(shlex.quote(_without_password(argument)) for argument in argv)]


def _without_password(argument: str) -> str:
    """Return an argument as reports may show it."""
    if "://" not in argument:
        return argument
    option, mark, url = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    return f"{option}{mark}{hide_password(url)}"
