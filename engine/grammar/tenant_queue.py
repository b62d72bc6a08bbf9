"""A queue of work for several threads, shared out between tenants by the time they have had."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Lock, Thread
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


# After so many seconds half of the time that a tenant has had counts no more.
_HALF_LIFE_S = 30.0
# Seconds had from which on a tenant leaves a thread to those that have had less, where one is kept.
_MUCH_S = 2.0
_NOTHING_S = 0.001


@dataclass(slots=True)
class _Share(Generic[T]):
    """What one tenant has waiting, by priority, and how much of its work is under way."""

    waiting: dict[int, deque[T]] = field(default_factory=dict)
    num_running: int = 0

    @property
    def priority(self) -> int:
        """The best priority that waits."""
        return min(self.waiting)


class TenantQueue(Generic[T]):
    """Gives the best priority first, and among equals the tenant that has had least time lately.

    While there is more than one thread, no tenant has all of them: the work of one waits for that
    of another at most until a thread is free, however much the other has queued. With
    `keeps_thread` one thread is left to tenants that have had little lately: as many others as
    there are threads would hold them up.
    """

    def __init__(
        self,
        num_threads: int,
        *,
        keeps_thread: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_running = max(1, num_threads - 1)
        self._most_of_heavy = self._most_running if keeps_thread else num_threads
        self._clock = clock
        self._shares: dict[str, _Share[T]] = {}
        self._had_s: dict[str, float] = {}
        self._halved_at = clock()
        self._num_waiting = 0
        self._changed = Condition()
        self._is_closed = False

    def put(self, tenant: str, priority: int, work: T) -> None:
        """Queue work; `priority` 0 is served first."""
        with self._changed:
            share = self._shares.setdefault(tenant, _Share())
            share.waiting.setdefault(priority, deque()).append(work)
            self._num_waiting += 1
            self._changed.notify()

    def take(self) -> tuple[str, T] | None:
        """Wait for work and return it with its tenant; None when the queue is closed.

        Its taker calls `finish`, and then takes again: of the others a thread is woken only where
        it finds work too, since each that wakes holds the interpreter's lock for a while.
        """
        with self._changed:
            while True:
                if self._is_closed:
                    return None
                tenant = self._next_tenant()
                if tenant is not None:
                    break
                self._changed.wait()
            share = self._shares[tenant]
            priority = share.priority
            lane = share.waiting[priority]
            work = lane.popleft()
            if not lane:
                del share.waiting[priority]
            share.num_running += 1
            self._num_waiting -= 1
            if self._next_tenant() is not None:
                self._changed.notify()
            return tenant, work

    def finish(self, tenant: str, spent_s: float) -> None:
        """Note that work of a tenant is done and what it took."""
        with self._changed:
            share = self._shares.get(tenant)
            if share is None:
                return
            share.num_running -= 1
            self._had_s[tenant] = self._had_s.get(tenant, 0.0) + spent_s
            if not share.num_running and not share.waiting:
                del self._shares[tenant]

    def close(self) -> None:
        """Give nothing any more."""
        with self._changed:
            self._is_closed = True
            self._shares.clear()
            self._num_waiting = 0
            self._changed.notify_all()

    def _next_tenant(self) -> str | None:
        if not self._num_waiting:
            return None
        self._decay()
        had_s = self._had_s
        heavy = [tenant for tenant in self._shares if had_s.get(tenant, 0.0) >= _MUCH_S]
        is_full = sum(self._shares[each].num_running for each in heavy) >= self._most_of_heavy
        left_out = set(heavy) if is_full else set[str]()
        ready = (
            (share.priority, had_s.get(tenant, 0.0), tenant)
            for tenant, share in self._shares.items()
            if share.waiting and share.num_running < self._most_running and tenant not in left_out
        )
        return min(ready, default=(0, 0.0, None))[2]

    def _decay(self) -> None:
        """Halve what tenants have had, as often as it is time."""
        halvings = int((self._clock() - self._halved_at) / _HALF_LIFE_S)
        if halvings:
            self._halved_at += halvings * _HALF_LIFE_S
            factor = 0.5 ** min(halvings, 100)
            halved = {tenant: had * factor for tenant, had in self._had_s.items()}
            self._had_s = {tenant: had for tenant, had in halved.items() if had >= _NOTHING_S}


@dataclass(frozen=True, slots=True)
class _Work(Generic[T]):
    """What a thread is to do, and where it tells of it."""

    do: Callable[[], T]
    future: Future[T] = field(default_factory=Future)


class TenantThreads:
    """Does what lies in a queue of tenants, in threads that start on first use.

    A mask may take a hundred times as long as most do, and a tenant may have hundreds of them
    waiting: those of others are made meanwhile.
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
        if not self._are_started:
            self._start()
        return work.future

    def _start(self) -> None:
        with self._lock:
            if not self._are_started:
                self._are_started = True
                for number in range(self._num_threads):
                    Thread(target=self._serve, name=f"masks-{number}", daemon=True).start()

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
