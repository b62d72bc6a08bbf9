"""A client process of the bench: opens its share of the streams and reads them to their ends.

Runs as `python -m tokenbus.worker.bench.gateway.sse_process PARENT_PID`; its order comes on stdin,
reports leave on stdout.
"""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial

from tokenbus.worker.bench.gateway.messages import (
    FROM_CLIENT,
    TO_CLIENT,
    AllOpened,
    Finished,
    SseOrder,
    StreamJob,
)
from tokenbus.worker.bench.gateway.sse_stream import SseStream, request_of
from tokenbus.worker.bench.load.pipes import open_pipes
from tokenbus.worker.process.child import die_with_parent


async def _read(order: SseOrder, writer: asyncio.StreamWriter) -> None:
    """Open the streams one after the other, and report each once all have ended."""
    loop, options = asyncio.get_running_loop(), order.options

    def tell_job(number: int, job_id: str) -> None:
        writer.write(FROM_CLIENT.encode(StreamJob(number, job_id)))

    streams: list[SseStream] = []
    for number in range(order.first, options.streams, order.step):
        due_s = order.start_s + options.opening_s * number / options.streams
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        stream = SseStream(number, request_of(options, options.seeds[number]), tell_job)
        streams.append(stream)
        try:
            await loop.create_connection(partial(_itself, stream), "127.0.0.1", order.port)
        except OSError as error:
            stream.fail(str(error))
    try:
        async with asyncio.timeout(order.give_up_s - time.monotonic()):
            for stream in streams:
                await stream.opened.wait()
            writer.write(FROM_CLIENT.encode(AllOpened()))
            for stream in streams:
                await stream.ended.wait()
    except TimeoutError:
        pass
    for stream in streams:
        stream.close()
        writer.write(FROM_CLIENT.encode(stream.report()))
        await writer.drain()
    writer.write(FROM_CLIENT.encode(Finished()))
    await writer.drain()


def _itself(stream: SseStream) -> SseStream:
    return stream


async def _main() -> int:
    reader, writer = await open_pipes()
    order = await TO_CLIENT.read(reader)
    assert isinstance(order, SseOrder), "the first message is no order"
    await _read(order, writer)
    return 0


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.exit(asyncio.run(_main()))
