"""How frames leave for another process, and how a prompt travels in one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import EngineLimits
from tokenbus.worker.jobs.prompt import PromptPreparer
from tokenbus.worker.messages.engine import COMMANDS, AddRequest
from tokenbus.worker.process.frame_writer import MAX_WAITING_BYTES, FrameWriter
from tokenbus.worker.process.frames import FrameReader

LIMITS = EngineLimits(
    model="null", num_pages=100, page_size=16, max_model_len=4096, max_num_seqs=4,
    eos_token_ids=(0,), vocab_size=512,
)  # fmt: skip


class StubTransport:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_gone = False

    def write(self, frames: bytes) -> None:
        """Take it."""
        self.written.append(frames)

    def is_closing(self) -> bool:
        """Tell whether the other end is gone."""
        return self.is_gone

    def close(self) -> None:
        """Go."""
        self.is_gone = True


def a_writer() -> tuple[FrameWriter, StubTransport]:
    """Make a writer on a stub."""
    transport: Any = StubTransport()
    return FrameWriter(transport), transport


async def test_frames_of_one_turn_go_together() -> None:
    """What may wait is written once the turn of the event loop is over, in one piece."""
    writer, transport = a_writer()
    writer.send_soon(b"a")
    writer.send_soon(b"b")
    assert transport.written == []
    await asyncio.sleep(0)
    assert transport.written == [b"ab"]


async def test_frame_that_goes_at_once_takes_along_what_waits() -> None:
    """Frames keep their order, whichever way each was sent."""
    writer, transport = a_writer()
    writer.send_soon(b"a")
    writer.send(b"b")
    writer.send(b"c")
    writer.send_soon(b"d")
    await asyncio.sleep(0)
    assert transport.written == [b"ab", b"c", b"d"]


async def test_much_that_waits_goes_before_the_turn_is_over() -> None:
    """A pile of long prompts does not wait until the last of them was prepared."""
    writer, transport = a_writer()
    writer.send_soon(bytes(MAX_WAITING_BYTES))
    assert [len(frames) for frames in transport.written] == [MAX_WAITING_BYTES]


async def test_frames_to_a_process_that_is_gone_are_dropped() -> None:
    """After the end nothing is written, neither what waited nor what comes."""
    writer, transport = a_writer()
    writer.send_soon(b"a")
    writer.close()
    writer.send(b"b")
    writer.send_soon(b"c")
    await asyncio.sleep(0)
    assert transport.written == []


def test_prompt_reaches_the_engine_as_it_was_submitted() -> None:
    """Ids that come packed or listed, and those of a text, are the engine's prompt."""
    preparer = PromptPreparer(build_null_tokenizer(), LIMITS)
    listed, packed = [0, 1, 300, 511], "AAAAAAEAAAAsAQAA/wEAAA=="
    for prompt in ({"token_ids": listed}, {"token_ids": packed}, {"prompt": "hé"}):
        prepared = preparer.tokenise(preparer.read(json.dumps(prompt).encode()))
        order = prepared.to_engine(7, 1, "1:t", ((),), ())
        [body] = FrameReader().feed(COMMANDS.encode(order))
        command = COMMANDS.decode(body)
        assert isinstance(command, AddRequest)
        request = command.unpacked()
        assert request.request_id == 7
        assert list(request.prompt_ids) == list(prepared.prompt_ids)
        assert "prompt" in prompt or list(request.prompt_ids) == listed
