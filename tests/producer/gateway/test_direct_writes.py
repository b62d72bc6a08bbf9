"""Tokens that are written where they are heard: the same frames, in the same order."""

from __future__ import annotations

import asyncio
import random
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import msgspec
import pytest
from patience import PATIENCE_S

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract.events import Event, Finish
from tokenbus.producer.contract.messages.wire_delta import WireCall, WireDelta, WireFunction
from tokenbus.producer.gateway.jobs.answer_frames import AnswerFrames
from tokenbus.producer.gateway.jobs.chunk_writer import ChunkWriter, ServerSends, Tick
from tokenbus.producer.gateway.jobs.stream_form import StreamForm
from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from gateways.doors import Door
    from starlette.types import Scope

    from tokenbus.producer.server.embedded import EmbeddedServer

JOB = "job-1"
PIECES = ["Look", " é", "", "<to>", ' "it"', "\n\u2028", "\U0001f680", "."]


class _Wire:
    """A connection as uvicorn has it, which keeps what was written."""

    def __init__(self) -> None:
        self.transport = self.flow = self
        self.write_paused = self.disconnected = self.response_complete = False
        self.writes: list[bytes] = []

    async def send(self, message: Any) -> None:
        """Stand in for the server's end, which the writer is found by."""

    def write(self, data: bytes) -> None:
        """Keep a write."""
        self.writes.append(data)


class _Source:
    """Events of one job, of which some are offered first."""

    def __init__(self, events: list[Event], offers: Callable[[], bool]) -> None:
        self._events = events
        self._offers = offers
        self._take: Callable[[Event], bool] | None = None
        self.num_taken = 0

    def hand_to(self, take: Callable[[Event], bool]) -> None:
        """Offer events to `take`."""
        self._take = take

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield what was not taken."""
        for event in self._events:
            is_open = event.finish is None and self._take is not None and self._offers()
            if is_open and self._take is not None and self._take(event):
                self.num_taken += 1
            else:
                yield event

    async def aclose(self) -> None:
        """End."""


class _Pieces:
    """Stands in for the writer of a response."""

    def __init__(self) -> None:
        self.is_ready = True
        self.written: list[bytes] = []
        self.write = self.written.append


def answer(kind: str, *, is_told: bool) -> list[Event]:
    """Return an answer of two choices, in events of one token and of two."""
    events, ends, index = [], [0, 0], 0
    for number, text in enumerate(PIECES * 2):
        choice = number % 3 % 2
        # Two tokens of a message come apart with the help of its log, which is not here.
        ids = (7,) if number % 5 or is_told else (7, 8)
        first, ends[choice] = ends[choice], ends[choice] + len(text)
        marks = (ends[choice],) if len(ids) == 1 else (first, ends[choice])
        start, index = index + 1, index + len(ids)
        event = Event(JOB, 1, choice, start, index, text, ids, marks)
        if is_told and kind == "chat":
            told = WireDelta(content=text or None)
            if number == 4:
                told = WireDelta(reasoning_content=text)
            elif number == 6:
                told = WireDelta(tool_calls=(WireCall(0, "call-1", WireFunction("f", text)),))
            event = msgspec.structs.replace(event, told=told)
        events.append(event)
    finish = Finish("length", Usage(3, 0, index), choices=("length", "length"))
    return [*events, Event(JOB, 1, 0, index + 1, index, finish=finish)]


def job() -> SubmittedJob:
    """Return the job, whose client is asked for the tokens of its prompt alone."""
    client: Any = AsyncMock()
    client.scripts.log.prompt_tokens.return_value = 3
    return SubmittedJob(job_id=JOB, tenant="default", pool="pool", client=client, created=1)


async def written(
    form: StreamForm, events: list[Event], after: int, offers: Callable[[], bool]
) -> tuple[bytes, int]:
    """Return the bytes of a stream, and how many events were taken where they were heard."""
    source, pieces = _Source(events, offers), _Pieces()
    frames = AnswerFrames(form, [job()], [source], [after])
    frames.write_to(pieces)  # type: ignore[arg-type]
    async for part in frames.frames():
        pieces.written.append(part)
    return b"".join(pieces.written), source.num_taken


@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("is_told", [False, True])
@pytest.mark.parametrize("with_usage", [False, True])
async def test_frames_are_the_same_whichever_way_they_go(
    kind: Any, *, is_told: bool, with_usage: bool
) -> None:
    """Written where they are heard, by a task, or some of each: a stream has the same bytes."""
    events = answer(kind, is_told=is_told)
    for continuous in (False, with_usage):
        form = StreamForm(
            kind=kind, jobs=(JOB,), created=1, model='m"', n=2, tier="flex",
            with_usage=with_usage, with_continuous_usage=continuous, names=({},),
        )  # fmt: skip
        for after in (0, 1, 5, events[-1].to):
            by_task, num_taken = await written(form, events, after, lambda: False)
            assert num_taken == 0
            told, num_taken = await written(form, events, after, lambda: True)
            assert told == by_task
            if after < 2:
                # Where usage is told as it grows, the prompt's tokens are asked for at the first.
                heard = events[1:-1] if continuous else events[:-1]
                assert num_taken == len([each for each in heard if each.start > after])
            draws = random.Random(after)
            for _ in range(5):
                mixed, _ = await written(form, events, after, partial(_either, draws))
                assert mixed == by_task


def _either(draws: random.Random) -> bool:
    return draws.random() < 0.5


async def test_slow_reader_is_left_to_the_task() -> None:
    """While a connection is full, its events wait for the task, which waits for the connection."""
    events = answer("chat", is_told=False)
    form = StreamForm(kind="chat", jobs=(JOB,), created=1, n=2, names=({},))
    source, pieces = _Source(events, lambda: True), _Pieces()
    pieces.is_ready = False
    frames = AnswerFrames(form, [job()], [source])
    frames.write_to(pieces)  # type: ignore[arg-type]
    assert [part async for part in frames.frames()]
    assert (source.num_taken, pieces.written) == (0, [])


def writer_of(wire: _Wire, tick: Tick, **scope: Any) -> ChunkWriter | None:
    """Return the writer of a request that a server has passed on."""
    found = {"type": "http", "http_version": "1.1", "method": "POST", **scope}
    found["extensions"] = {"tokenbus.send": wire.send}
    return ChunkWriter.of(found, tick, lambda: None)


async def test_second_piece_of_a_turn_waits_for_its_end() -> None:
    """The first piece goes out at once, the others together; what is sent after them is behind."""
    wire, tick = _Wire(), Tick(asyncio.get_running_loop())
    writer = writer_of(wire, tick)
    assert writer is not None
    for piece in (b"one", b"two", b"three"):
        writer.write(piece)
    assert wire.writes == [b"3\r\none\r\n"]
    await asyncio.sleep(0)
    assert wire.writes == [b"3\r\none\r\n", b"8\r\ntwothree\r\n"]
    for piece in (b"four", b"five"):
        writer.write(piece)
    writer.flush()
    wire.write(b"sent")
    await asyncio.sleep(0)
    assert wire.writes[2:] == [b"4\r\nfour\r\n", b"4\r\nfive\r\n", b"sent"]


async def test_no_writer_where_bodies_are_no_plain_chunks() -> None:
    """HTTP/1.0, HEAD and other servers have none; what is full or gone is not ready."""
    wire, tick = _Wire(), Tick(asyncio.get_running_loop())
    assert writer_of(wire, tick, http_version="1.0") is None
    assert writer_of(wire, tick, method="HEAD") is None
    assert ChunkWriter.of({"http_version": "1.1", "method": "GET"}, tick, lambda: None) is None
    writer = writer_of(wire, tick)
    assert writer is not None
    assert writer.is_ready
    for name in ("write_paused", "disconnected", "response_complete"):
        setattr(wire, name, True)
        assert not writer.is_ready
        setattr(wire, name, False)


@pytest.mark.processes
@pytest.mark.asyncio(loop_scope="module")
async def test_gateway_writes_directly(
    null_door: Door,
    private_server: EmbeddedServer,
    module_pool: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind the server of `tokenbus gateway` nearly all tokens go that way, to the same frames."""
    pieces: list[bytes] = []
    opened = asyncio.Event()
    write, make = ChunkWriter.write, ChunkWriter.of

    def counted(self: ChunkWriter, body: bytes) -> None:
        pieces.append(body)
        write(self, body)

    def made(scope: Scope, tick: Tick, on_write: Callable[[], None]) -> ChunkWriter | None:
        opened.set()
        return make(scope, tick, on_write)

    monkeypatch.setattr(ChunkWriter, "write", counted)
    monkeypatch.setattr(ChunkWriter, "of", made)
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 60, "stream": True}
    # The first token comes when the stream is open, however slow this machine is.
    async with await AsyncClient.connect(private_server.url, pool=module_pool) as client:
        await client.pause()
        asked = asyncio.create_task(null_door.post("/v1/chat/completions", body))
        async with asyncio.timeout(PATIENCE_S):
            await opened.wait()
        await client.resume()
    told = await asked
    assert b"".join(pieces).count(b"\ndata: ") > 30
    job_id = told.headers["X-Tokenbus-Job-Id"]
    again = await null_door.get(f"/v1/jobs/{job_id}/stream")
    shown = [[(f.id, f.data) for f in each.data_frames] for each in (told, again)]
    assert shown[0] == shown[1]
    assert ServerSends.__name__ in type(null_door.server.config.app).__name__  # type: ignore[union-attr]
