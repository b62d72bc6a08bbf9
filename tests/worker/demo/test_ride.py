"""The ride follows its jobs, and gives up in order when it cannot."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest
from patience import PATIENCE_S
from rich.console import Console

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.events import Event, Finish
from tokenbus.producer.errors import ServerUnreachable
from tokenbus.worker.demo.jobs import shop_jobs
from tokenbus.worker.demo.ride import BusRide
from tokenbus.worker.demo.view import PlainView
from tokenbus.worker.errors import EngineDied

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.worker.demo.view import BusState


@dataclass(frozen=True)
class _Accepted:
    job_id: str


class _StubClient:
    """Accepts everything and streams what the test gives; without an end it waits for ever."""

    def __init__(self, *events: Event | Exception) -> None:
        self._events = events
        self.requests: list[dict[str, Any]] = []

    async def submit(self, **request: Any) -> _Accepted:
        self.requests.append(request)
        return _Accepted(f"job-{len(self.requests)}")

    async def stream(self, _: str) -> AsyncIterator[Event]:
        for event in self._events:
            if isinstance(event, Exception):
                raise event
            yield event
            if event.finish is not None:
                return
        await asyncio.get_running_loop().create_future()


def _tokens(start: int, to: int, text: str) -> Event:
    ids = tuple(range(start, to + 1))
    return Event("job", 1, 0, start, to, text=text, ids=ids, ends=ids)


def _ride(client: _StubClient, num_jobs: int = 2) -> BusRide:
    return BusRide(cast("AsyncClient", client), shop_jobs(num_jobs), max_tokens=8)


def _view() -> PlainView:
    return PlainView(Console(quiet=True))


def _no_gauges(_: BusState) -> None:
    """Leave the picture as it is."""


async def test_ride_collects_text_tokens_and_usage() -> None:
    """Every reader's tokens, text and usage end up in its clock and its answer."""
    usage = Usage(prompt_tokens=50, cached_tokens=40, completion_tokens=3)
    end = Event("job", 1, 0, 4, 3, finish=Finish("stop", usage))
    client = _StubClient(_tokens(1, 1, "wet "), _tokens(2, 3, "socks"), end)
    ride = _ride(client)
    await ride.run(_view(), _no_gauges, PATIENCE_S)
    assert [answer.text for answer in ride.state.answers] == ["wet socks"] * 2
    assert ride.state.num_ended == 2
    for clock in ride.clocks:
        assert (clock.num_tokens, clock.num_prompt_tokens, clock.num_cached_tokens) == (3, 50, 40)
        assert clock.finished
    assert all(request["temperature"] == 0.0 for request in client.requests)


async def test_ride_that_takes_too_long_leaves_jobs_open() -> None:
    """Past its time the ride ends without an error and counts nobody as finished."""
    ride = _ride(_StubClient(_tokens(1, 1, "wet ")))
    await ride.run(_view(), _no_gauges, 0.05)
    assert not any(clock.finished for clock in ride.clocks)
    assert ride.state.num_tokens == 2


async def test_ride_stops_when_its_worker_has_given_up() -> None:
    """A worker that is gone ends the ride at the next picture, not at its time limit."""

    def gone(_: BusState) -> None:
        raise EngineDied("gone")

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(EngineDied, match="gone"):
            await _ride(_StubClient()).run(_view(), gone, 10 * PATIENCE_S)


async def test_ride_reports_one_error_when_the_server_goes() -> None:
    """All readers fail together; the caller gets one error that it knows."""
    with pytest.raises(ServerUnreachable, match="no server"):
        await _ride(_StubClient(ServerUnreachable("no server"))).run(
            _view(), _no_gauges, PATIENCE_S
        )
