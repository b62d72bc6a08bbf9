"""What is said to a process while it computes is heard, in order and once."""

from __future__ import annotations

import random
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import Mock

import pytest
from patience import PATIENCE_S

from tokenbus.engine.errors import SequenceTooLong
from tokenbus.engine.types import Request, SamplingParams
from tokenbus.worker.engine.process import EngineLoop
from tokenbus.worker.engine.socket_reader import SocketReader
from tokenbus.worker.messages.engine import COMMANDS, AddRequest
from tokenbus.worker.process.frames import FrameReader

if TYPE_CHECKING:
    from collections.abc import Iterator

Ends = tuple[socket.socket, socket.socket]
NUM_REQUESTS = 200
PROMPT_BYTES = 16 * 1024


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Give both ends of a socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(PATIENCE_S)
        yield ours, theirs


def test_crowd_that_comes_during_a_step_is_there_for_the_next(ends: Ends) -> None:
    """Many times what a socket holds is sent while the engine computes, and taken in one go."""
    ours, theirs = ends
    adds = [
        AddRequest(Request(number, (), SamplingParams()), bytes(PROMPT_BYTES))
        for number in range(NUM_REQUESTS)
    ]
    frames = b"".join(map(COMMANDS.encode, adds))
    assert len(frames) > 5 * theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    loop = EngineLoop(engine=Mock(), sock=ours, frames=FrameReader())
    with loop._socket_reader.listening():
        theirs.sendall(frames)
        deadline = time.monotonic() + PATIENCE_S
        while (
            sum(map(len, loop._socket_reader._heard)) < len(frames) and time.monotonic() < deadline
        ):
            time.sleep(0.001)
    assert loop._take_commands()
    assert list(loop._held_back) == list(range(NUM_REQUESTS))
    theirs.shutdown(socket.SHUT_WR)
    assert not loop._take_commands()


def test_step_that_is_due_is_made_before_the_rest_of_a_crowd_comes_in(ends: Ends) -> None:
    """The others come in behind its launch, in their order; one that is refused holds up none."""
    ours, _ = ends
    engine = Mock()
    engine.add.side_effect = [False, SequenceTooLong("too long"), True, False, False]
    loop = EngineLoop(engine=engine, sock=ours, frames=FrameReader())
    for number in range(5):
        loop._apply(AddRequest(Request(number, (), SamplingParams()), bytes(8)))
    loop._admit_held_back()
    assert list(loop._held_back) == [3, 4]
    loop._admit_held_back()
    assert not loop._held_back
    assert [call.args[0].request_id for call in engine.add.call_args_list] == list(range(5))


def test_bytes_keep_their_order_whoever_reads_them(ends: Ends) -> None:
    """The owner and the other thread take turns at random; nothing is lost, doubled or moved."""
    ours, theirs = ends
    source = random.Random(5)
    said = source.randbytes(4_000_000)

    def talk() -> None:
        first = 0
        while first < len(said):
            size = source.choice((1, 50, 3000, 200_000))
            theirs.sendall(said[first : first + size])
            first += size
        theirs.shutdown(socket.SHUT_WR)

    talker = threading.Thread(target=talk, daemon=True)
    talker.start()
    socket_reader = SocketReader(ours)
    chunks: list[bytes] = []
    deadline = time.monotonic() + PATIENCE_S
    while chunks[-1:] != [b""] and time.monotonic() < deadline:
        socket_reader.wait(0.01)
        chunks += socket_reader.take()
        with socket_reader.listening():
            time.sleep(0.0005)
    assert b"".join(chunks) == said
    talker.join()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_other_thread_sleeps_through_what_its_owner_waits_for(ends: Ends) -> None:
    """What comes while the owner is idle wakes the owner alone, also once it has computed."""
    ours, theirs = ends
    others = set(threading.enumerate())
    socket_reader = SocketReader(ours)
    [listener] = set(threading.enumerate()) - others
    with socket_reader.listening():
        theirs.sendall(b"first")
        deadline = time.monotonic() + PATIENCE_S
        while not socket_reader._heard and time.monotonic() < deadline:
            time.sleep(0.001)
    assert socket_reader.take() == [b"first"]
    socket_reader.wait(0.0)
    until_asleep(listener)
    before = times_asleep(listener)
    for _ in range(20):
        theirs.sendall(b"word")
        socket_reader.wait(PATIENCE_S)
        assert socket_reader.take() == [b"word"]
    assert times_asleep(listener) == before


def times_asleep(thread: threading.Thread) -> int:
    """Return how often a thread has gone to sleep."""
    return int(told_of(thread, "voluntary_ctxt_switches"))


def told_of(thread: threading.Thread, name: str) -> str:
    """Return what the kernel tells of a thread."""
    path = Path(f"/proc/self/task/{thread.native_id}/status")
    told = dict(line.split(":\t", 1) for line in path.read_text().splitlines())
    return told[name]


def until_asleep(thread: threading.Thread) -> None:
    """Wait until a thread has gone to sleep for good: several looks find it asleep where it was.

    One that waits for a processor sleeps no more often meanwhile, and is not asleep.
    """
    seen, num_equal = -1, 0
    deadline = time.monotonic() + PATIENCE_S
    while num_equal < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
        now, state = times_asleep(thread), told_of(thread, "State")
        num_equal = num_equal + 1 if now == seen and state.startswith("S") else 0
        seen = now


def test_what_was_heard_is_not_waited_for(ends: Ends) -> None:
    """A word that came at the end of a step is there before the loop would wait for another."""
    ours, theirs = ends
    socket_reader = SocketReader(ours)
    with socket_reader.listening():
        theirs.sendall(b"word")
        deadline = time.monotonic() + PATIENCE_S
        while not socket_reader._heard and time.monotonic() < deadline:
            time.sleep(0.001)
    started_at = time.monotonic()
    socket_reader.wait(PATIENCE_S)
    assert time.monotonic() - started_at < PATIENCE_S / 2
    assert socket_reader.take() == [b"word"]
