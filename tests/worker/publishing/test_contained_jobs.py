"""What one job's text raises fails that job; its neighbours of the same step are logged."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from servers.fixtures import pool, redis_url, server
from workers.publisher_bench import running_publisher, take_over
from workers.steps import step

from tokenbus.engine.text.stop_strings import StopStrings
from tokenbus.producer.contract.events import Finish
from tokenbus.worker.messages.publishing import Committed, Decided, OpenGate, Renewed, Taken

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        decided = {(await bench.first(Decided)).key for _ in BAD}
        assert decided == set(BAD)
        committed = [await bench.first(Committed) for _ in BAD]
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
        assert {(await bench.first(Decided)).key for _ in (1, 2)} == {1, 2}
        committed = [await bench.first(Committed) for _ in (1, 2)]
        assert {Finish.parse(report.finish).reason for report in committed} == {"failed"}


def _raise(*_: Sequence[Any], **__: Any) -> None:
    raise ValueError("planted")
