"""The group memory carries orders to every rank, whole and in order, however long they are."""

from __future__ import annotations

import contextlib
import os
import random
import socket
from threading import Thread
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

from tokenbus.engine.errors import RankLost
from tokenbus.engine.parallel import watch
from tokenbus.engine.parallel.group_memory import GroupMemory, open_memory
from tokenbus.engine.parallel.topology import cores_of
from tokenbus.engine.parallel.watch import RankWatch

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def memories() -> Iterator[list[GroupMemory]]:
    """Return the group memory of three ranks as each of them sees it."""
    memory = open_memory()
    yield [GroupMemory(memory, rank, 3) for rank in range(3)]
    os.close(memory)


@pytest.fixture
def bells() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Return a pair of sockets for each of two followers."""
    pairs = [socket.socketpair() for _ in range(2)]
    yield pairs
    for pair in pairs:
        for end in pair:
            end.close()


def test_orders_arrive_whole_and_in_order(
    memories: list[GroupMemory], bells: list[tuple[socket.socket, socket.socket]]
) -> None:
    """Orders that wrap around the ring, fill it and outgrow it reach readers that sleep."""
    rng = random.Random(1)
    sizes = [0, 1, 5_000_000, *(rng.randrange(400_000) for _ in range(30))]
    orders = [rng.randbytes(size) for size in sizes]
    found: dict[int, list[bytes]] = {1: [], 2: []}

    def read(rank: int) -> None:
        for _ in orders:
            found[rank].append(memories[rank].receive(bells[rank - 1][1], spin_s=0.0))

    readers = [Thread(target=read, args=(rank,), daemon=True) for rank in found]
    for reader in readers:
        reader.start()
    for order in orders:
        memories[0].publish(order, [ours for ours, _ in bells], lambda: None)
    for reader in readers:
        reader.join(PATIENCE_S)
    assert found == {1: orders, 2: orders}


def test_reader_learns_that_rank_zero_hung_up(
    memories: list[GroupMemory], bells: list[tuple[socket.socket, socket.socket]]
) -> None:
    """A follower that waits for an order ends with rank 0."""
    bells[0][0].close()
    with pytest.raises(ConnectionError):
        memories[1].receive(bells[0][1], spin_s=0.0)


def test_full_ring_asks_whether_a_rank_was_lost(
    memories: list[GroupMemory], bells: list[tuple[socket.socket, socket.socket]]
) -> None:
    """A writer does not wait for a reader that is dead."""

    def check() -> None:
        raise RankLost(1, "ended")

    with pytest.raises(RankLost, match="rank 1 ended"):
        memories[0].publish(bytes(8 << 20), [ours for ours, _ in bells], check)


def test_ranks_that_all_wait_are_lost(
    memories: list[GroupMemory],
    bells: list[tuple[socket.socket, socket.socket]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beats that go on do not hide a deadlock; a rank that computes is waited for."""
    monkeypatch.setattr(watch, "SILENT_S", 0.3)
    found = RankWatch(memories[0], [], [ours for ours, _ in bells])

    def beat() -> None:
        while found._loss is None:
            memories[1].beat()
            memories[2].beat()

    beats = Thread(target=beat, daemon=True)
    beats.start()
    memories[0].enter()
    memories[1].enter()
    found.start()
    # The third rank computes.
    assert not found._has_lost.wait(1.0)
    memories[2].enter()
    assert found._has_lost.wait(PATIENCE_S)
    with pytest.raises(RankLost, match="waits for ranks that wait for it"):
        found.check()
    beats.join()


def test_rank_that_has_left_a_collective_out_is_lost(
    memories: list[GroupMemory],
    bells: list[tuple[socket.socket, socket.socket]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rank 0 waits in it, and the others for an order: beats alone do not make up for that."""
    monkeypatch.setattr(watch, "SILENT_S", 0.3)
    found = RankWatch(memories[0], [], [ours for ours, _ in bells])
    memories[1].enter()

    def follow() -> None:
        with contextlib.suppress(ConnectionError):
            memories[2].receive(bells[1][1], 0.0)

    follower = Thread(target=follow, daemon=True)
    follower.start()

    def beat() -> None:
        while found._loss is None:
            memories[1].beat()
            memories[2].beat()

    beats = Thread(target=beat, daemon=True)
    beats.start()
    found.start()
    # Rank 0 computes.
    assert not found._has_lost.wait(1.0)
    memories[0].enter()
    assert found._has_lost.wait(PATIENCE_S)
    with pytest.raises(RankLost, match="waits for ranks that wait for it"):
        found.check()
    beats.join()
    bells[1][0].close()
    follower.join()


def test_lists_of_cores_are_read() -> None:
    """The kernel's lists of cores name ranges and single ones."""
    assert cores_of("0-2,8,10-11\n") == {0, 1, 2, 8, 10, 11}
    assert cores_of("") == set()
