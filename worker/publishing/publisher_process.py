"""The publisher process: a publisher and its log writers, without engine, queue or lease.

It runs as `python -m tokenbus.worker.publishing.publisher_process FD PARENT_PID`. It ends when its
socket closes or its parent dies; it writes only while the worker keeps the gate open, and stops by
itself when the worker's last renewal has become too old (R7).
"""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from tokenbus.engine.text.byte_table import ByteTable
from tokenbus.producer import gc
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server.connection import make_redis
from tokenbus.worker import logs
from tokenbus.worker.messages.publishing import (
    ORDERS,
    PUBLISHER_REPORTS,
    Configure,
    Lost,
    Progress,
    Ready,
)
from tokenbus.worker.process.child import die_with_parent, die_with_socket, ignore_signals
from tokenbus.worker.process.frame_writer import FrameWriter
from tokenbus.worker.process.frames import FrameReader
from tokenbus.worker.publishing.publisher import Publisher
from tokenbus.worker.session import Session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokenbus.worker.messages.publishing import PublisherReport

# Progress of several calls in one message; the credit that it returns is for seconds of tokens.
_REPORT_AFTER_S = 0.005


class PublisherProcess(asyncio.Protocol):
    """Receives orders, builds the publisher from the first of them, and sends its reports."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._frames = FrameReader()
        self._publisher: Publisher | None = None
        self._writer: FrameWriter | None = None
        self._cpu_s = time.process_time()
        self.hung_up = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the worker."""
        assert isinstance(transport, asyncio.Transport)
        self._writer = FrameWriter(transport)

    def data_received(self, data: bytes) -> None:
        """Obey every order that `data` completes."""
        for body in self._frames.feed(data):
            order = ORDERS.decode(body)
            if self._publisher is not None:
                self._publisher.obey(order)
            elif isinstance(order, Configure):
                self._publisher = self._build(order)
                self._emit(Ready())
            else:
                raise TypeError(f"expected to be configured, got {type(order).__name__}")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """End with the worker."""
        self.hung_up.set()

    def _build(self, order: Configure) -> Publisher:
        # The worker writes these lines into its log, in its form.
        logs.configure(order.log_level, "json")
        logs.bind(worker_id=order.worker)
        redis = make_redis(order.redis_url, order.call_timeout_s)
        session = Session(redis, order.lease_ttl_s)
        scripts = Scripts(redis, order.pool, timeout_s=order.call_timeout_s)
        publisher = Publisher(
            session=session,
            redis=redis,
            scripts=scripts,
            tokenizer=_text_source(order),
            worker=order.worker,
            emit=self._emit,
            report_after_s=_REPORT_AFTER_S,
        )
        session.when_lost(lambda reason: self._emit(Lost(publisher.generation, reason)))
        publisher.run_in(self._tasks)
        gc.freeze_startup_objects()
        return publisher

    def _emit(self, report: PublisherReport) -> None:
        if isinstance(report, Progress):
            cpu_s = time.process_time()
            report.cpu_s, self._cpu_s = cpu_s - self._cpu_s, cpu_s
        if self._writer is not None:
            self._writer.send_soon(PUBLISHER_REPORTS.encode(report))


def _text_source(order: Configure) -> ByteTable | PreTrainedTokenizerBase:
    """Return the source of a token's text; the tokenizers library is loaded only if need be."""
    if order.token_bytes is not None:
        return ByteTable.load(order.token_bytes, order.strips_first_space, order.special_texts)
    from tokenbus.worker.tokenizer import load_tokenizer

    return load_tokenizer(order.tokenizer_folder, order.vocab_size)


async def serve(sock: socket.socket) -> None:
    """Publish until the worker hangs up."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        _, process = await loop.create_unix_connection(lambda: PublisherProcess(tasks), sock=sock)
        await process.hung_up.wait()
        raise SystemExit(0)


def main(argv: list[str]) -> int:
    """Take the socket's descriptor and the parent's pid, then serve."""
    ignore_signals()
    die_with_parent(int(argv[1]))
    sock = socket.socket(fileno=int(argv[0]))
    threading.Thread(target=die_with_socket, args=(sock.dup(),), daemon=True).start()
    sock.setblocking(False)
    asyncio.run(serve(sock))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
