"""Standard input and output of a process of the bench as streams of frames."""

from __future__ import annotations

import asyncio
import os
import sys

from tokenbus.producer.open_files import raise_file_limit


async def open_pipes() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return the way from the bench and the way back to it; open as many files as allowed."""
    raise_file_limit()
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    # Nothing that prints may disturb the frames.
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, pipe)
    # What was drained has left the process, which may end then.
    transport.set_write_buffer_limits(0)
    return orders, asyncio.StreamWriter(transport, protocol, None, loop)
