"""The notice that a server is waited for: a connection may be tried for long, and says so."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A server that is there has answered by then, an embedded one has mostly started.
NOTICE_AFTER_S = 1.0


@contextmanager
def waiting_told(tell: Callable[[], None], after_s: float = NOTICE_AFTER_S) -> Iterator[None]:
    """Call `tell` once, in the running event loop, if what is done meanwhile takes longer."""
    timer = asyncio.get_running_loop().call_later(after_s, tell)
    try:
        yield
    finally:
        timer.cancel()
