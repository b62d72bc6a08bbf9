"""The heartbeat of a bench: a line on standard error every few seconds of what it is at.

A thread of its own tells the time, so that nothing is added to what is measured.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

INTERVAL_S = 3.0


class Heartbeat:
    """Prints what goes on: each new thing at once, then for how long it has."""

    def __init__(self, name: str, interval_s: float = INTERVAL_S) -> None:
        self._name = name
        self._interval_s = interval_s
        self._doing = ""
        self._began_at = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        """Begin to tell."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, with the bench or with its error."""
        self._is_over.set()
        self._thread.join()

    def note(self, doing: str, share: float = 0.0) -> None:
        """Say what goes on from now on, and which share of it is done."""
        if doing != self._doing:
            self._doing, self._began_at = doing, time.monotonic()
            done = f" {share:.0%}" if share else ""
            self._print(f"{doing}{done}")

    def _beat(self) -> None:
        while not self._is_over.wait(self._interval_s):
            if self._doing:
                self._print(f"{self._doing}, for {time.monotonic() - self._began_at:.0f} s")

    def _print(self, text: str) -> None:
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)
