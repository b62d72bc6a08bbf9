"""What the engine's process takes off its socket between two steps."""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING
from unittest.mock import Mock

from tokenbus.engine.types import Request, SamplingParams
from tokenbus.worker import engine_process
from tokenbus.worker.engine_process import EngineLoop
from tokenbus.worker.handoff import AddRequest, FrameReader, encode_frame

if TYPE_CHECKING:
    import pytest

NUM_REQUESTS = 200
PROMPT_BYTES = 16 * 1024


def test_crowd_of_long_prompts_is_taken_in_before_the_next_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many times what a socket holds comes in one go, as fast as the other end sends it.

    Else each step would get two dozen prompts, whatever it has room for.
    """
    monkeypatch.setattr(engine_process, "_CROWD_BYTES", 1)
    monkeypatch.setattr(engine_process, "_REFILL_S", 1.0)
    monkeypatch.setattr(engine_process, "_MAX_TAKE_S", 20.0)
    ours, theirs = socket.socketpair()
    adds = [
        AddRequest(Request(number, (), SamplingParams()), bytes(PROMPT_BYTES))
        for number in range(NUM_REQUESTS)
    ]
    frames = b"".join(map(encode_frame, adds))
    capacity = theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    assert len(frames) > 5 * capacity
    sender = threading.Thread(target=theirs.sendall, args=(frames,), daemon=True)
    loop = EngineLoop(Mock(), ours, FrameReader())
    sender.start()
    select.select([ours], [], [], 20)
    assert loop._take_commands()
    assert len(loop._held_back) == NUM_REQUESTS
    sender.join()
    theirs.close()
    assert not loop._take_commands()
    ours.close()


def test_step_waits_for_nobody_who_has_said_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a short prompt nothing is waited for."""
    ours, theirs = socket.socketpair()
    loop = EngineLoop(Mock(), ours, FrameReader())
    theirs.sendall(encode_frame(AddRequest(Request(1, (), SamplingParams()), bytes(64))))
    monkeypatch.setattr(
        "tokenbus.worker.engine_process.select.select", Mock(side_effect=AssertionError)
    )
    assert loop._take_commands()
    assert len(loop._held_back) == 1
    ours.close()
    theirs.close()
