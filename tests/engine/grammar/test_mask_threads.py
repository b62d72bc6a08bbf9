"""Masks of one tenant hold up nobody else's."""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

from tokenbus.engine.grammar.mask_threads import MaskThreads

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def threads() -> Iterator[MaskThreads]:
    """Give two threads, of which a tenant has one at a time."""
    made = MaskThreads(2)
    yield made
    made.close()


def test_work_of_another_tenant_is_done_beside_a_flood(threads: MaskThreads) -> None:
    """However much of the first one's waits, whose own all gets done afterwards."""
    gate = Event()
    flood = [threads.submit("heavy", 1, gate.wait) for _ in range(50)]
    light = [threads.submit("light", 1, lambda number=number: number) for number in range(3)]
    assert [future.result(PATIENCE_S) for future in light] == [0, 1, 2]
    assert not any(future.done() for future in flood)
    gate.set()
    assert all(future.result(PATIENCE_S) for future in flood)


def test_what_raises_is_told_and_what_is_cancelled_is_left_out(threads: MaskThreads) -> None:
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
