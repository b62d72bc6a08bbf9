"""Parallel compilation: the kernels of a warm-up side by side, not one after the other."""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from triton import AsyncCompileMode
from triton.runtime.jit import JITFunction

if TYPE_CHECKING:
    from collections.abc import Iterator

# The front of the compiler is Python and holds the interpreter: more threads win nothing.
_MAX_THREADS = 16
# How long one of them holds it while others wait; Python's own 5 ms are for fewer hands.
_TURN_S = 0.5e-3


@contextmanager
def compiling_ahead() -> Iterator[None]:
    """Only compile what is launched inside, in threads; wait for all of it at the end.

    No kernel runs: tensors it would have written hold whatever was in their memory. The caller
    has to throw away what it computed.
    """
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, **kwargs: Any) -> Any:
        return run(self, *args, **{**kwargs, "warmup": True})

    interval_s = sys.getswitchinterval()
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool, AsyncCompileMode(pool):
        JITFunction.run = compile_only
        # What launches lets go of the interpreter in every call of torch, and would find the next
        # kernel to compile a thread's whole turn later.
        sys.setswitchinterval(_TURN_S)
        try:
            yield
        finally:
            sys.setswitchinterval(interval_s)
            JITFunction.run = run
