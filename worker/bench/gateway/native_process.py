"""A native reader of the bench: reads jobs of the gateway's streams with the asynchronous client.

Runs as `python -m tokenbus.worker.bench.gateway.native_process PARENT_PID`; the jobs come on stdin,
reports leave on stdout.
"""

from __future__ import annotations

import asyncio
import sys
import time
from array import array

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ProducerError
from tokenbus.worker.bench.gateway.messages import (
    FROM_CLIENT,
    TO_CLIENT,
    Finished,
    NativeOrder,
    NativeReady,
    StreamJob,
    StreamTimes,
)
from tokenbus.worker.bench.load.pipes import open_pipes
from tokenbus.worker.process.child import die_with_parent


class NativeStream:
    """Notes when each token of one job came."""

    def __init__(self, client: AsyncClient, job: StreamJob) -> None:
        self._client = client
        self._job = job
        self._cursors = array("I")
        self._times = array("d")
        self._fault: str | None = "did not end"

    async def read(self) -> None:
        """Read the job to its end."""
        cursors, times, now = self._cursors, self._times, time.monotonic
        try:
            async for event in self._client.stream(self._job.job_id):
                if event.finish is None:
                    came_s = now()
                    for cursor in range(event.start, event.to + 1):
                        cursors.append(cursor)
                        times.append(came_s)
            self._fault = None
        except ProducerError as error:
            self._fault = f"{type(error).__name__}: {error}"

    def report(self) -> StreamTimes:
        """Return what came so far."""
        return StreamTimes(
            number=self._job.number,
            cursors=self._cursors.tobytes(),
            times=self._times.tobytes(),
            fault=self._fault,
        )


async def _main() -> int:
    orders, reports = await open_pipes()
    order = await TO_CLIENT.read(orders)
    assert isinstance(order, NativeOrder), "the first message is no order"
    streams: list[NativeStream] = []
    async with await AsyncClient.connect(order.url, order.pool) as client:
        reports.write(FROM_CLIENT.encode(NativeReady()))
        reading: list[asyncio.Task[None]] = []
        while isinstance(message := await TO_CLIENT.read(orders), StreamJob):
            streams.append(NativeStream(client, message))
            reading.append(asyncio.create_task(streams[-1].read()))
        if reading:
            left_s = max(0.0, order.give_up_s - time.monotonic())
            _, late = await asyncio.wait(reading, timeout=left_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
    for stream in streams:
        reports.write(FROM_CLIENT.encode(stream.report()))
        await reports.drain()
    reports.write(FROM_CLIENT.encode(Finished()))
    await reports.drain()
    return 0


if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    sys.exit(asyncio.run(_main()))
