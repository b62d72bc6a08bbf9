"""Work for grammars is shared out between tenants."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

from tokenbus.engine.grammar.tenant_queue import TenantQueue, TenantThreads

if TYPE_CHECKING:
    from collections.abc import Iterator


def taken(queue: TenantQueue[str]) -> tuple[str, str]:
    """Take what comes next; there is something."""
    work = queue.take()
    assert work is not None
    return work


def test_tenant_with_a_long_queue_does_not_hold_up_another() -> None:
    """The next thread that is free serves the tenant that has had the least."""
    queue: TenantQueue[str] = TenantQueue(2)
    for number in range(100):
        queue.put("heavy", 1, f"heavy-{number}")
    tenant, work = taken(queue)
    assert work == "heavy-0"
    queue.put("light", 1, "light-0")
    assert taken(queue) == ("light", "light-0")
    queue.finish(tenant, 1.0)
    queue.put("light", 1, "light-1")
    queue.finish("light", 0.001)
    assert taken(queue) == ("light", "light-1")
    assert taken(queue) == ("heavy", "heavy-1")


def test_tenant_alone_leaves_a_thread_to_others() -> None:
    """Of two threads one stays free, so that another tenant is served at once."""
    queue: TenantQueue[str] = TenantQueue(2)
    queue.put("heavy", 0, "heavy-0")
    queue.put("heavy", 0, "heavy-1")
    assert taken(queue) == ("heavy", "heavy-0")
    queue.put("light", 2, "light-0")
    assert taken(queue) == ("light", "light-0")
    queue.finish("heavy", 1.0)
    assert taken(queue) == ("heavy", "heavy-1")


def test_tenants_that_have_had_much_leave_a_thread_to_others_together() -> None:
    """However many they are; after a while they are as all others."""
    now = 0.0
    queue: TenantQueue[str] = TenantQueue(2, keeps_thread=True, clock=lambda: now)
    for tenant in ("heavy", "slow"):
        for number in range(3):
            queue.put(tenant, 0, f"{tenant}-{number}")
    first, second = taken(queue), taken(queue)
    assert {first[1], second[1]} == {"heavy-0", "slow-0"}
    for tenant, _ in (first, second):
        queue.finish(tenant, 2.5)
    heavy, _ = taken(queue)
    queue.put("light", 1, "light-0")
    assert taken(queue) == ("light", "light-0")
    queue.finish("light", 0.01)
    queue.put("light", 1, "light-1")
    assert taken(queue) == ("light", "light-1")
    queue.finish("light", 0.01)
    queue.finish(heavy, 2.5)
    assert taken(queue)[0] in {"heavy", "slow"}
    now = 1e6
    assert taken(queue)[0] in {"heavy", "slow"}


def test_better_priority_comes_first_and_equals_take_turns() -> None:
    """Priority decides, then the time that a tenant has had; within a tenant, the order."""
    queue: TenantQueue[str] = TenantQueue(8)
    queue.put("a", 1, "a-0")
    queue.put("a", 1, "a-1")
    queue.put("b", 1, "b-0")
    queue.put("c", 0, "c-0")
    assert taken(queue) == ("c", "c-0")
    assert taken(queue) == ("a", "a-0")
    queue.finish("a", 3.0)
    assert taken(queue) == ("b", "b-0")
    assert taken(queue) == ("a", "a-1")


def test_closed_queue_gives_nothing() -> None:
    """What waits when it is closed is dropped, and work under way may still be finished."""
    queue: TenantQueue[str] = TenantQueue(2)
    queue.put("a", 1, "a-0")
    queue.put("b", 1, "b-0")
    taken(queue)
    queue.close()
    assert queue.take() is None
    queue.finish("a", 1.0)


def test_no_thread_is_woken_that_finds_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is for each work that comes, and for what more may be done; none because some is done."""
    queue: TenantQueue[str] = TenantQueue(3)
    woken = list[str]()
    monkeypatch.setattr(queue._changed, "notify", lambda: woken.append("one"))
    queue.put("a", 1, "a-0")
    queue.finish(taken(queue)[0], 0.001)
    assert len(woken) == 1
    for number in range(4):
        queue.put("a", 1, f"a-{number}")
    woken.clear()
    first, _ = taken(queue)
    assert len(woken) == 1
    # The tenant has all threads that it may have: who finishes takes what waits.
    taken(queue)
    queue.finish(first, 0.001)
    taken(queue)
    assert len(woken) == 1


@pytest.fixture
def threads() -> Iterator[TenantThreads]:
    """Give two threads, of which a tenant has one at a time."""
    made = TenantThreads(2)
    yield made
    made.close()


def test_work_of_another_tenant_is_done_beside_a_flood(threads: TenantThreads) -> None:
    """However much of the first one's waits, whose own all gets done afterwards."""
    gate = Event()
    flood = [threads.submit("heavy", 1, gate.wait) for _ in range(50)]
    light = [threads.submit("light", 1, lambda number=number: number) for number in range(3)]
    assert [future.result(PATIENCE_S) for future in light] == [0, 1, 2]
    assert not any(future.done() for future in flood)
    gate.set()
    assert all(future.result(PATIENCE_S) for future in flood)


def test_what_raises_is_told_and_what_is_cancelled_is_left_out(threads: TenantThreads) -> None:
    """The thread goes on behind both."""

    class Panic(BaseException):
        """What the library raises beside errors."""

    def panics() -> None:
        raise Panic

    gate = Event()
    first = threads.submit("a", 1, gate.wait)
    broken = threads.submit("a", 1, panics)
    left_out = threads.submit("a", 1, lambda: pytest.fail("it was cancelled"))
    last = threads.submit("a", 1, lambda: "done")
    assert left_out.cancel()
    gate.set()
    assert last.result(PATIENCE_S) == "done"
    assert first.result(PATIENCE_S)
    assert isinstance(broken.exception(), Panic)
