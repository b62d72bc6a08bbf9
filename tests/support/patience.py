"""How long a test waits: for what has no time limit of its own, and for what promises one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A guard against hangs only: no test of a quiet machine takes a tenth of it, so that a machine
# which is ten times as slow fails nothing.
PATIENCE_S = 300.0

_NAP_S = 0.01


async def until_within(condition: Callable[[], bool], limit_s: float) -> None:
    """Hold a promise that has a time limit to it, by a clock that a busy machine slows down.

    The limit is counted in naps: where this process is woken late, the processes that it waits for
    get as little time. Raises: AssertionError, once the limit has passed.
    """
    for _ in range(round(limit_s / _NAP_S)):
        if condition():
            return
        await asyncio.sleep(_NAP_S)
    raise AssertionError(f"not within {limit_s} s")
