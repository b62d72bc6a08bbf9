"""What one job's text raises fails that job; its neighbours of the same step are logged."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from servers.fixtures import pool, redis_url, server
from workers.publisher_bench import running_publisher, take_over
from workers.steps import step

from tokenbus.engine.text.stop_strings import StopStrings
from tokenbus.engine.types import FinishReason
from tokenbus.producer.contract.events import Finish
from tokenbus.worker.messages.publishing import Broken, Committed, Decided, OpenGate, Renewed, Taken
from tokenbus.worker.publishing import log_writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.publishing.job_log import JobLog

__all__ = ["pool", "redis_url", "server"]

# More than one slice.
KEYS = range(1, 61)
BAD = (1, 24, 30, 60)
FINE, ODD = 300, 301


@pytest.mark.parametrize("num_tokens", [1, 2], ids=["plain-row", "other-row"])
async def test_job_whose_text_raises_fails_alone(
    redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch, num_tokens: int
) -> None:
    """In any slice of a step, by one token or by several; tokens behind it find their own job."""
    async with running_publisher(redis_url, pool) as bench:
        publisher = bench.publisher
        publisher.obey(OpenGate(0, time.monotonic()))
        for key in KEYS:
            publisher.obey(take_over(key, f"s0-{key}"))
        for _ in KEYS:
            await bench.first(Taken)
        for key in BAD:
            text: Any = publisher._job_logs[key].texts[0]
            monkeypatch.setattr(text, "push_plain", _raise)
            monkeypatch.setattr(text, "push", _raise)
        publisher.obey(step(tokens=dict.fromkeys(KEYS, (FINE,) * num_tokens)))
        heard = [await bench.first(Decided, Committed) for _ in range(2 * len(BAD))]
        assert {report.key for report in heard if isinstance(report, Decided)} == set(BAD)
        committed = [report for report in heard if isinstance(report, Committed)]
        assert {report.key for report in committed} == set(BAD)
        for report in committed:
            finish = Finish.parse(report.finish)
            assert finish.reason == "failed"
            assert finish.error is not None
            assert finish.error.code == "internal"
        publisher.obey(step(tokens={key: (ODD,) for key in KEYS if key not in BAD}))
        # The rest of a step is taken before any other order.
        publisher.obey(Renewed(time.monotonic()))
        for key in set(KEYS) - set(BAD):
            transcript = publisher._job_logs[key].transcript
            assert transcript is not None
            assert transcript.ids_of(0) == (*(FINE,) * num_tokens, ODD)


async def test_job_whose_text_cannot_begin_fails_alone(
    redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What raises before the first token is that job's failure as well."""
    async with running_publisher(redis_url, pool) as bench:
        publisher = bench.publisher
        publisher.obey(OpenGate(0, time.monotonic()))
        monkeypatch.setattr(StopStrings, "__init__", _raise)
        publisher.obey(take_over(1, "s0-1"))
        publisher.obey(take_over(2, "s0-2", is_ahead=True))
        heard = [await bench.first(Decided, Committed) for _ in range(4)]
        assert {report.key for report in heard if isinstance(report, Decided)} == {1, 2}
        committed = [report for report in heard if isinstance(report, Committed)]
        assert len(committed) == 2
        assert {Finish.parse(report.finish).reason for report in committed} == {"failed"}


def _raise(*_: Sequence[Any], **__: Any) -> None:
    raise ValueError("planted")


@pytest.mark.parametrize("work", ["add_tokens", "end_of", "add_beginning"])
async def test_job_whose_log_cannot_be_packed_goes_back_alone(
    redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """Its worker hears that the log is broken; the other jobs of the call are logged and end."""
    pack = getattr(log_writer, work)

    def odd(job: JobLog, *rest: Any) -> Any:
        if job.key in BAD:
            raise ValueError("planted")
        return pack(job, *rest)

    async with running_publisher(redis_url, pool) as bench:
        publisher = bench.publisher
        publisher.obey(OpenGate(0, time.monotonic()))
        is_ahead = work == "add_beginning"
        for key in KEYS:
            publisher.obey(take_over(key, f"s0-{key}", is_ahead=is_ahead))
        for _ in () if is_ahead else KEYS:
            await bench.first(Taken)
        monkeypatch.setattr(log_writer, work, odd)
        ends = dict.fromkeys(KEYS, FinishReason.LENGTH)
        publisher.obey(step(tokens=dict.fromkeys(KEYS, (FINE,)), ends=ends))
        heard = [await bench.first(Broken, Committed) for _ in KEYS]
        assert {report.key for report in heard if isinstance(report, Broken)} == set(BAD)
        assert {report.key for report in heard} == set(KEYS)
