"""The span process: makes spans of the jobs that a worker tells of, and sends them to a collector.

It runs as `python -m tokenbus.worker.tracing.span_process FD PARENT_PID`, so that neither making
spans nor sending them takes time from the process whose tokens wait meanwhile. It ends with its
socket: a worker that is killed is outlived by `FLUSH_S` at most, in which its last spans are sent.
"""

from __future__ import annotations

import socket
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

from tokenbus.producer.telemetry.trace_setup import send_traces
from tokenbus.worker import logs
from tokenbus.worker.process.child import ignore_signals, leave
from tokenbus.worker.process.frames import FrameReader
from tokenbus.worker.tracing.traced_job import MESSAGES, JobSpans, SpanDestination

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.worker.tracing.traced_job import Left

# A collector that answers at all has taken the last batch by then.
FLUSH_S = 5.0
_READ_BYTES = 1 << 16


def _messages(sock: socket.socket) -> Iterator[SpanDestination | Left]:
    """Yield what the worker says until it hangs up."""
    frames = FrameReader()
    while True:
        try:
            chunk = sock.recv(_READ_BYTES)
        except ConnectionError:
            return
        if not chunk:
            return
        yield from map(MESSAGES.decode, frames.feed(chunk))


def main(argv: list[str]) -> NoReturn:
    """Take the socket's descriptor, and tell of jobs until the worker hangs up."""
    ignore_signals()
    messages = _messages(socket.socket(fileno=int(argv[0])))
    destination = next(messages, None)
    if not isinstance(destination, SpanDestination):
        leave(1)
    # The worker writes these lines into its log, in its form.
    logs.configure(destination.log_level, "json")
    logs.take_library_logs()
    logs.bind(worker_id=destination.worker)
    flush = send_traces(destination.endpoint, "worker", destination.pool)
    spans = JobSpans(destination.pool, destination.worker)
    for message in messages:
        if not isinstance(message, SpanDestination):
            spans.tell(message.jobs)
    threading.Timer(FLUSH_S, leave, (1,)).start()
    flush()
    leave(0)


if __name__ == "__main__":
    main(sys.argv[1:])
