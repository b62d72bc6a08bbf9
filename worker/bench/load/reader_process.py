"""A reader process: submits its share of the jobs, reads their answers, reports to the bench.

Runs as `python -m tokenbus.worker.bench.load.reader_process`; orders come on stdin, reports leave
on stdout. It ends with its work, when stdin closes, or at the time that Go names.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.bench.load.messages import (
    FROM_READER,
    TO_READER,
    AllRead,
    Done,
    Go,
    LoadOrder,
    ReaderFailed,
    ReaderReady,
    Verify,
)
from tokenbus.worker.bench.load.pipes import open_pipes
from tokenbus.worker.bench.load.reader_load import ReaderLoad

if TYPE_CHECKING:
    from tokenbus.worker.bench.load.messages import FromReader

_REPORT_S = 0.25


class Reports:
    """The way back to the bench: whole frames, one after the other."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    async def send(self, message: FromReader) -> None:
        """Send one message."""
        self._writer.write(FROM_READER.encode(message))
        await self._writer.drain()


def client_settings(order: LoadOrder) -> ClientSettings:
    """Return the settings of the reader's client."""
    bounds: dict[str, Any] = {
        "max_tenant_tokens": order.options.max_tenant_tokens,
        "max_pool_tokens": order.options.max_pool_tokens,
    }
    given = {name: value for name, value in bounds.items() if value is not None}
    return ClientSettings(redis_url=order.url, **given)


async def _serve(orders: asyncio.StreamReader, reports: Reports) -> None:
    order = await TO_READER.read(orders)
    assert isinstance(order, LoadOrder), "the first message is no order"
    settings = client_settings(order)
    async with (
        await AsyncClient.connect(order.url, order.pool, settings) as client,
        await AsyncClient.connect(order.url, order.pool, settings) as stranger,
    ):
        reader = ReaderLoad(order, client, stranger)
        await reports.send(ReaderReady())
        go = await TO_READER.read(orders)
        assert isinstance(go, Go), "the second message is no start"
        await _read(reader, go, orders, reports)
        await reader.verify()
        await reports.send(reader.progress())
        await reports.send(Done(reader.plain.num_jobs, reader.plain.num_events))
        await reader.plain.close()


async def _read(reader: ReaderLoad, go: Go, orders: asyncio.StreamReader, reports: Reports) -> None:
    """Drive the load until everything is read and the bench asks for the verification.

    Raises: IncompleteReadError if the bench is gone.
    """
    cpu_s = time.process_time()
    run, order = asyncio.create_task(reader.run(go)), asyncio.create_task(TO_READER.read(orders))
    checks = asyncio.create_task(reader.verify_on_the_way())
    try:
        while not run.done() and not order.done():
            await asyncio.wait([run, order], timeout=_REPORT_S,
                return_when=asyncio.FIRST_COMPLETED)  # fmt: skip
            await reports.send(reader.progress())
        if run.done():
            run.result()
            await reports.send(AllRead(time.process_time() - cpu_s))
        message = await order
        assert isinstance(message, Verify), "the third message is no order to verify"
    finally:
        for task in (run, order, checks):
            task.cancel()
        await asyncio.gather(run, order, checks, return_exceptions=True)


async def _main() -> int:
    orders, writer = await open_pipes()
    reports = Reports(writer)
    try:
        await _serve(orders, reports)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        print(f"tokenbus: a reader has lost the bench: {error}", file=sys.stderr)
        return 1
    except ProducerError as error:
        await reports.send(ReaderFailed(f"{type(error).__name__}: {error}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
