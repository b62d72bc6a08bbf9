"""The bench of the gateway: what it pairs, what it finds wrong, and runs of it."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from tokenbus.worker.bench.gateway.arguments import run_bench
from tokenbus.worker.bench.gateway.command import GatewayReport
from tokenbus.worker.bench.gateway.figures import MeasuredStreams, sum_up
from tokenbus.worker.bench.gateway.messages import StreamTimes
from tokenbus.worker.bench.gateway.options import GatewayBenchOptions
from tokenbus.worker.bench.gateway.sse_stream import SseStream
from tokenbus.worker.engine.step_log import HandoverTimes
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from pathlib import Path

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Tokenbus-Job-Id: j1\r\n\r\n"
FRAMES = [
    b": queue position 2\n",
    b'id: j1:1\ndata: {"choices":[]}\n\n',
    b": alive\n",
    b'id: j1:2\ndata: {"choices":[]}\n\nid: j1:3\ndata: {"choices":[]}\n\n',
    b"data: [DONE]\n\n",
]


def chunked(parts: list[bytes]) -> bytes:
    """Return parts as chunks of HTTP, with their end."""
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


def read(wire: bytes, size: int) -> tuple[StreamTimes, list[tuple[int, str]]]:
    """Read a stream that comes in pieces of so many bytes; return its report and its job."""
    jobs: list[tuple[int, str]] = []
    stream = SseStream(7, b"", lambda number, job_id: jobs.append((number, job_id)))
    for start in range(0, len(wire), size):
        stream.data_received(wire[start : start + size])
    return stream.report(), jobs


async def test_stream_is_read_however_it_was_cut() -> None:
    """Cursors, comments and the end are found wherever one read ends and the next begins."""
    wire = HEAD + chunked(FRAMES)
    for size in (1, 2, 3, 7, 50, len(wire)):
        report, jobs = read(wire, size)
        assert report.fault is None
        assert jobs == [(7, "j1")]
        assert np.frombuffer(report.cursors, np.uint32).tolist() == [1, 2, 3]
        assert len(report.times) == 3 * 8
        assert report.num_comments == 2


async def test_stream_that_is_none_or_breaks_off_is_a_fault() -> None:
    """A refusal, an error in the stream, a missing end and a broken chunk are told."""
    refusal = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 2\r\n\r\n{}"
    error = chunked([b'data: {"error":{"code":"x"}}\n\n', b"data: [DONE]\n\n"])
    for wire, told in (
        (refusal, "503"),
        (HEAD + error, '"error"'),
        (HEAD + chunked(FRAMES[:-1]), "no [DONE] after 3 tokens"),
        (HEAD + b"zz\r\n", "cannot be read"),
    ):
        fault = read(wire, len(wire))[0].fault
        assert fault is not None
        assert told in fault


def times(number: int, cursors: list[int], seconds: list[float]) -> StreamTimes:
    """Return what a reader reports."""
    return StreamTimes(
        number=number,
        cursors=array("I", cursors).tobytes(),
        times=array("d", seconds).tobytes(),
        asked_s=seconds[0] - 0.5 if seconds else 0.0,
    )


def test_tokens_are_paired_inside_the_window() -> None:
    """Each token counts against the native reader's; tokens outside do not, nor frames of ends."""
    options = GatewayBenchOptions(streams=2, tokens_per_s=1.0, ramp_s=0, warm_up_s=0, duration_s=2)
    assert options.max_tokens == 3
    handed = {options.seeds[0]: HandoverTimes(9.0, np.array([10.0, 11.0, 12.0]))}
    figures = sum_up(MeasuredStreams(
        options=options, begin_s=10.5, end_s=13.0,
        streams=[
            times(0, [1, 2, 3, 4], [10.1, 11.004, 12.006, 12.5]), times(1, [1, 3], [10.0, 11.0])
        ],
        natives=[times(0, [1, 2, 3], [10.0, 11.002, 12.002])],
        handover_times=handed, gateway_cpu_s=3e-4, native_cpu_s=4e-5,
        memory_idle_bytes=1000, memory_bytes=5000,
    ))  # fmt: skip
    assert (figures.num_tokens, figures.num_ok) == (3, 1)
    assert figures.faults == ["stream 1: 2 of 3 tokens"]
    assert (figures.added_ms.count, figures.added_ms.p50, figures.added_ms.max) == (2, 2.0, 4.0)
    assert (figures.stream_lag_ms.p50, figures.native_lag_ms.p50) == (4.0, 2.0)
    assert (figures.cpu_us_per_token, figures.native_cpu_us_per_token) == (100.0, 20.0)
    assert figures.memory_per_stream_bytes == 2000
    assert figures.ttft_ms.p50 == 500.0


def test_options_out_of_bounds_are_refused_by_name() -> None:
    """A wrong value is told with its option."""
    for values, told in (({"streams": 0}, "--streams"), ({"native_share": 101}, "--native-share")):
        with pytest.raises(SettingsInvalid, match=told):
            GatewayBenchOptions(**values)  # type: ignore[arg-type]


@pytest.mark.processes
@pytest.mark.parametrize(
    "mode", [["--route", "completions"], pytest.param(["--idle"], marks=pytest.mark.slow)]
)
def test_every_stream_comes_through_and_is_measured(mode: list[str], tmp_path: Path) -> None:
    """Both kinds of run end by themselves with sound figures, in the file as on the screen."""
    found = tmp_path / "found.json"
    argv = "--streams 6 --tokens-per-s 30 --duration-s 1 --warm-up-s 0.2 --ramp-s 0.3"
    assert run_bench([*argv.split(), *mode, "--clients", "2", "--json", str(found)]) == 0
    figures = msgspec.json.decode(found.read_bytes(), type=GatewayReport).figures
    assert (figures.num_ok, figures.faults) == (6, [])
    assert figures.longest_silence_ms.count == 6
    assert figures.memory_bytes > 0
    is_idle = mode == ["--idle"]
    assert (figures.num_tokens == 0) is is_idle
    assert (figures.added_ms.count > 0) is not is_idle
    assert figures.stream_lag_ms.count == figures.num_tokens
