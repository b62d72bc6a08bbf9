"""Variables of the environment that hold secrets, which no child process inherits.

A process's environment can be read by its user and lands in crash reports; a child that needs the
server is told its URL through a pipe or socket.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# Settings are read whatever the case of the variable.
_SECRET = {"TOKENBUS_REDIS_URL", "TOKENBUS_ARQ_REDIS_URL", "TOKENBUS_WEBHOOK_KEYS"}


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the variables that may hold passwords or keys."""
    return {name: value for name, value in environment.items() if name.upper() not in _SECRET}
