"""Threads for masks, shared out between tenants as the trials of grammars are."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

from tokenbus.engine.grammar.tenant_queue import TenantQueue

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Work(Generic[T]):
    """What a thread is to do, and where it tells of it."""

    do: Callable[[], T]
    future: Future[T] = field(default_factory=Future)


class MaskThreads:
    """Does work in threads, for the best priority first and then for who has had the least time.

    A mask may take a hundred times as long as most do, and a tenant may have hundreds of them
    waiting: those of others are made meanwhile. The threads start on first use.
    """

    def __init__(self, num_threads: int) -> None:
        """Use so many threads; a tenant has one less at a time."""
        self._num_threads = num_threads
        self._queue: TenantQueue[_Work[object]] = TenantQueue(num_threads)
        self._lock = Lock()
        self._are_started = False

    def submit(self, tenant: str, priority: int, do: Callable[[], T]) -> Future[T]:
        """Queue work and return where its outcome will be."""
        work = _Work(do)
        self._queue.put(tenant, priority, work)  # type: ignore[arg-type]  # of what, `do` knows
        with self._lock:
            if not self._are_started:
                self._are_started = True
                for number in range(self._num_threads):
                    Thread(target=self._serve, name=f"masks-{number}", daemon=True).start()
        return work.future

    def close(self) -> None:
        """Stop; what is queued comes to nothing."""
        self._queue.close()

    def _serve(self) -> None:
        while (taken := self._queue.take()) is not None:
            tenant, work = taken
            begins = time.thread_time()
            if work.future.set_running_or_notify_cancel():
                try:
                    done = work.do()
                except BaseException as error:  # A panic of the library too.
                    work.future.set_exception(error)
                else:
                    work.future.set_result(done)
            self._queue.finish(tenant, time.thread_time() - begins)
