"""Work for grammars is shared out between tenants."""

from __future__ import annotations

from tokenbus.engine.grammar.tenant_queue import TenantQueue


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
