"""What a child prints becomes whole lines of our log, whatever it prints and however it ends."""

from __future__ import annotations

import asyncio
import os

from tokenbus.worker.process.child_output import ChildOutput


async def test_lines_are_told_whole_and_the_rest_at_the_end() -> None:
    """Pieces are joined to lines, a bar that redraws itself is lines too, an open end is told."""
    told: list[str] = []
    output = ChildOutput(told.append)
    for piece in (b"one\ntw", b"o\n\n 50%\r100%\r\xff", b"\nleft"):
        os.write(output.child_end, piece)
        await asyncio.sleep(0)
    output.began()
    output.close()
    output.close()
    assert told == ["one", "two", " 50%", "100%", "\ufffd", "left"]


async def test_line_without_an_end_is_cut() -> None:
    """No child makes its worker keep more than a few kilobytes."""
    told: list[str] = []
    output = ChildOutput(told.append)
    os.write(output.child_end, b"x" * 10_000)
    output.began()
    output.close()
    assert [len(text) for text in told] == [4096, 4096, 1808]


async def test_grandchild_that_lives_on_holds_nobody_up() -> None:
    """A process of the child that keeps its end open is not waited for."""
    told: list[str] = []
    output = ChildOutput(told.append)
    kept = os.dup(output.child_end)
    output.began()
    os.write(kept, b"said")
    output.close()
    os.close(kept)
    assert told == ["said"]
