"""The messages between the bench and its client processes, which travel as frames over pipes."""

from __future__ import annotations

import msgspec

from tokenbus.worker.bench.gateway.options import (  # noqa: TC001 -- msgspec reads it
    GatewayBenchOptions,
)
from tokenbus.worker.process.frames import Framing


class SseOrder(msgspec.Struct, tag="sse", array_like=True, kw_only=True):
    """Open the streams `first`, `first + step`, … through the gateway at `port`.

    The first of all begins at `start_s`; what is open at `give_up_s` is given up. Times are
    CLOCK_MONOTONIC in seconds, which all processes of a machine share.
    """

    options: GatewayBenchOptions
    port: int
    first: int
    step: int
    start_s: float
    give_up_s: float


class NativeOrder(msgspec.Struct, tag="native", array_like=True, kw_only=True):
    """Connect to the server and read the jobs that follow, until `give_up_s` at most."""

    url: str
    pool: str
    give_up_s: float


class StreamJob(msgspec.Struct, tag="job", array_like=True):
    """The job of a stream, known as soon as the headers of its answer came."""

    number: int
    job_id: str


class NoMoreJobs(msgspec.Struct, tag="no_more", array_like=True):
    """All jobs were told: report when the last one has ended."""


class StreamTimes(msgspec.Struct, tag="times", array_like=True, kw_only=True):
    """What came of a stream, by its reader's clock.

    `cursors` holds the token indices as uint32, `times` when each came as float64. `asked_s` is
    when it was asked for, `longest_silence_s` the longest time without any byte after the headers.
    `fault` says why it is not as it should be.
    """

    number: int
    cursors: bytes
    times: bytes
    asked_s: float = 0.0
    longest_silence_s: float = 0.0
    num_comments: int = 0
    fault: str | None = None


class AllOpened(msgspec.Struct, tag="opened", array_like=True):
    """Every stream of a client has its headers, or will have none."""


class Finished(msgspec.Struct, tag="finished", array_like=True):
    """The process has reported everything."""


class NativeReady(msgspec.Struct, tag="ready", array_like=True):
    """The native client is connected."""


ToClient = SseOrder | NativeOrder | StreamJob | NoMoreJobs
FromClient = StreamJob | StreamTimes | AllOpened | Finished | NativeReady

TO_CLIENT: Framing[ToClient] = Framing(ToClient)
FROM_CLIENT: Framing[FromClient] = Framing(FromClient)
