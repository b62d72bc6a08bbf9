"""Streams that hear nothing: who has nothing to read is not woken, and asks for nothing itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.null_workers import until

from tokenbus.producer.client.reading.silence_watch import SilenceWatch
from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.events import Event

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.client.reading.subscription import Subscription

LAST = 3


class KnownJobs:
    """What the server knows of all jobs, and how often it was asked."""

    def __init__(self, state: bytes | None, last: int | None = LAST) -> None:
        self.state = state
        self.last = last
        self.num_asked = 0

    async def states(self, job_ids: Sequence[str]) -> list[bytes | None]:
        """Return the states of records."""
        self.num_asked += 1
        return [self.state] * len(job_ids)

    async def last_indices(self, job_ids: Sequence[str]) -> list[int | None]:
        """Return how far logs are."""
        return [self.last] * len(job_ids)


def listening(known: Any, *, is_proven: bool = True) -> Subscription:
    """Return a subscription of a stream that was told three tokens."""
    watch = SilenceWatch(known, 0.02)
    made = watch.subscription(b"c", 99, JobAddress("j"), lambda _: None, lambda: is_proven)
    made.put(Event("j", 1, 0, 1, LAST, "abc", (1, 2, 3), (1, 2, 3)))
    made.take()
    return made


async def waited(subscription: Subscription) -> None:
    """Wait as a stream does."""
    async with asyncio.timeout(PATIENCE_S):
        await subscription.wait()


@pytest.mark.parametrize("state", [b"waiting", b"delayed", b"held"])
async def test_stream_that_has_all_there_is_sleeps_on(state: bytes) -> None:
    """One whose job waits is not woken, nor one that was told all of its log, until more is."""
    known = KnownJobs(state)
    waiting = asyncio.ensure_future(waited(listening(known)))
    await until(lambda: known.num_asked >= 3)
    assert not waiting.done()
    known.state, known.last = b"held", LAST + 1
    await waiting


@pytest.mark.parametrize(
    ("state", "last", "is_proven"),
    [
        pytest.param(None, LAST, True, id="unknown"),
        pytest.param(b"done", LAST, True, id="done"),
        pytest.param(b"ending", LAST, True, id="ending"),
        pytest.param(b"held", None, True, id="end in the log"),
        pytest.param(b"held", LAST - 1, True, id="tail of the log lost"),
        pytest.param(b"held", LAST, False, id="worker of an earlier release"),
    ],
)
async def test_stream_that_may_have_missed_something_looks(
    state: bytes | None, last: int | None, is_proven: bool
) -> None:
    """Whatever is not surely the same is for the stream to read."""
    await waited(listening(KnownJobs(state, last), is_proven=is_proven))
