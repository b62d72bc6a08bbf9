"""Parallel compilation: the kernels of a warm-up side by side, not one after the other."""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from triton import AsyncCompileMode
from triton.runtime import driver
from triton.runtime.jit import JITFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future

# The front of the compiler is Python and holds the interpreter: more threads win nothing.
_MAX_THREADS = 16
# How long one of them holds it while others wait; Python's own 5 ms are for fewer hands.
_TURN_S = 0.5e-3


class _Launchable:
    """Gives a pool what compiles kernels, and has it build what launches each of them as well.

    Triton 3.6 runs a C compiler for that when a kernel is first launched, half a second in the
    thread that launches.
    """

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def submit(self, compile_kernel: Callable[[], Any]) -> Future[Any]:
        """Compile in a thread."""

        def compile_whole() -> Any:
            kernel = compile_kernel()
            # It is found on disk from now on.
            driver.active.launcher_cls(kernel.src, kernel.metadata)
            return kernel

        return self._pool.submit(compile_whole)


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
    num_threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(num_threads) as pool, AsyncCompileMode(_Launchable(pool)):
        JITFunction.run = compile_only
        # What launches lets go of the interpreter in every call of torch, and would find the next
        # kernel to compile a thread's whole turn later.
        sys.setswitchinterval(_TURN_S)
        try:
            yield
        finally:
            sys.setswitchinterval(interval_s)
            JITFunction.run = run
