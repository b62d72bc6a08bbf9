"""The messages between the bench and its reader processes, which travel as frames over pipes."""

from __future__ import annotations

import msgspec

from tokenbus.worker.bench.options import BenchOptions  # noqa: TC001 -- msgspec reads it
from tokenbus.worker.process.frames import Framing


class LoadOrder(msgspec.Struct, tag="order", array_like=True, kw_only=True):
    """Connect and prepare reader `reader_idx` of `num_readers`; answered by ReaderReady."""

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


class Verify(msgspec.Struct, tag="verify", array_like=True):
    """Compare what was read with the results and report it; the figures of the load are taken."""


class ReaderReady(msgspec.Struct, tag="ready", array_like=True):
    """The reader is connected and has its plan."""


class JobReport(msgspec.Struct, tag="job", array_like=True, kw_only=True):
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


class LoadProgress(msgspec.Struct, tag="progress", array_like=True, kw_only=True):
    """How far a reader has come, and the jobs that ended since its last report."""

    num_submitted: int = 0
    num_open: int = 0
    num_tokens: int = 0
    ended: list[JobReport] = []


class AllRead(msgspec.Struct, tag="read", array_like=True):
    """Every job of the reader ended or was given up; `cpu_s` is what it used since Go."""

    cpu_s: float


class Done(msgspec.Struct, tag="done", array_like=True):
    """The reader has reported everything; the counts are of its plain readers."""

    num_plain_jobs: int
    num_plain_events: int


class ReaderFailed(msgspec.Struct, tag="failed", array_like=True):
    """The reader cannot go on."""

    message: str


ToReader = LoadOrder | Go | Verify
FromReader = ReaderReady | LoadProgress | AllRead | Done | ReaderFailed

TO_READER: Framing[ToReader] = Framing(ToReader)
FROM_READER: Framing[FromReader] = Framing(FromReader)
