"""Tokens that a grammar takes long to accept: taken while other threads run Python.

The library keeps the interpreter's lock while it accepts a token, 100 ms with an ambiguous grammar.
It gives the lock back only where it accepts tokens of several matchers at once.
"""

from __future__ import annotations

import time
from threading import Lock
from typing import TYPE_CHECKING

from llguidance import LLExecutor, LLMatcher

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class UnlockedAccept:
    """Accepts tokens in threads of the library, which start on first use."""

    def __init__(self, num_threads: int) -> None:
        """Let so many tokens be accepted at a time."""
        self._num_threads = num_threads
        self._lock = Lock()
        self._executor: LLExecutor | None = None
        self._stuck: LLMatcher | None = None

    def accept(
        self, matcher: LLMatcher, token_id: int, tokenizer: LLTokenizer
    ) -> tuple[bool, float]:
        """Take a token, which is waited for.

        Returns: whether the grammar allows it, and the seconds that it took by the clock. What
            they were of processor time nobody measures in the library's threads.
        """
        with self._lock:
            if self._executor is None or self._stuck is None:
                self._executor = LLExecutor(num_threads=self._num_threads)
                # One that takes nothing, for a call of two.
                self._stuck = LLMatcher(tokenizer, "start: (", log_level=0)
            stuck = self._stuck.deep_copy()
        begins = time.perf_counter()
        is_taken, _ = self._executor.consume_token_par([(matcher, token_id), (stuck, 0)])
        return is_taken, time.perf_counter() - begins
