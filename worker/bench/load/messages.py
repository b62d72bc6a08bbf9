"""What the bench and its reader processes say to each other: frames of msgpack over pipes."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec

from tokenbus.worker.bench.options import BenchOptions  # noqa: TC001 -- msgspec reads it

if TYPE_CHECKING:
    import asyncio

_LENGTH = struct.Struct("<I")


class Order(msgspec.Struct, tag="order", array_like=True):
    """Connect and prepare reader `reader_idx` of `num_readers`; answered by Ready."""

    options: BenchOptions
    url: str
    pool: str
    reader_idx: int
    num_readers: int


class Go(msgspec.Struct, tag="go", array_like=True):
    """Begin at `start_s`; no user begins another job after `stop_s`; give up at `give_up_s`.

    Times are CLOCK_MONOTONIC in seconds, which all processes of a machine share.
    """

    start_s: float
    stop_s: float
    give_up_s: float


class Ready(msgspec.Struct, tag="ready", array_like=True):
    """The reader is connected and has its plan."""


class JobReport(msgspec.Struct, tag="job", array_like=True):
    """What became of a job, by its reader's clock.

    `outcome` is the finish reason, or `refused`, `lost` or `unfinished`. `late_s` is how much later
    than planned the first submit was; `num_refusals` counts the refusals before it was accepted or
    given up. `arrivals` holds the time of every event as float64, `counts` its tokens as uint32.
    `fault` says what the check found, or why the stream broke off.
    """

    number: int
    phase: str
    tenant: str
    priority: int
    seed: int
    late_s: float
    num_refusals: int
    submitted_s: float
    accepted_s: float | None
    ended_s: float | None
    outcome: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    arrivals: bytes
    counts: bytes
    fault: str | None


class Progress(msgspec.Struct, tag="progress", array_like=True):
    """How far a reader has come, and the jobs that ended since the last time."""

    num_submitted: int
    num_open: int
    num_tokens: int
    ended: list[JobReport]


class Done(msgspec.Struct, tag="done", array_like=True):
    """The reader has reported everything; `cpu_s` is what it used since Go."""

    cpu_s: float


class Broken(msgspec.Struct, tag="broken", array_like=True):
    """The reader cannot go on."""

    message: str


ToReader = Order | Go
FromReader = Ready | Progress | Done | Broken

_encoder = msgspec.msgpack.Encoder()
_to_reader: msgspec.msgpack.Decoder[ToReader] = msgspec.msgpack.Decoder(ToReader)
_from_reader: msgspec.msgpack.Decoder[FromReader] = msgspec.msgpack.Decoder(FromReader)


def frame(message: ToReader | FromReader) -> bytes:
    """Serialise a message with its length in front."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read_order(stream: asyncio.StreamReader) -> ToReader:
    """Read the next message to a reader. Raises: IncompleteReadError at the end of the stream."""
    return _to_reader.decode(await _read_body(stream))


async def read_report(stream: asyncio.StreamReader) -> FromReader:
    """Read the next message of a reader. Raises: IncompleteReadError at the end of the stream."""
    return _from_reader.decode(await _read_body(stream))


async def _read_body(stream: asyncio.StreamReader) -> bytes:
    (length,) = _LENGTH.unpack(await stream.readexactly(_LENGTH.size))
    return await stream.readexactly(length)
