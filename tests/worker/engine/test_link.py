"""The engine process: what it delivers, how it fails and that it never outlives its worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S, until_within
from workers.linked_engine import Engine

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import ModelNotFound
from tokenbus.engine.null.null_config import NullConfig
from tokenbus.engine.types import FinishReason, Request, SamplingParams
from tokenbus.worker.engine.link import EngineLink
from tokenbus.worker.errors import DeathCause, EngineStartFailed
from tokenbus.worker.messages.engine import (
    REPORTS,
    AbortRequest,
    AddRequest,
    Beat,
    Credit,
    EngineRefused,
    RequestRefused,
    StartEngine,
    StepRecord,
)
from tokenbus.worker.process.frames import FrameReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Starter = Callable[..., Awaitable[Engine]]

pytestmark = pytest.mark.processes


@pytest.fixture
async def start() -> AsyncIterator[Starter]:
    """Start engines that are gone after the test."""
    engines: list[Engine] = []

    async def _start(bounds: tuple[int, int] | None = None, **config: int) -> Engine:
        message = StartEngine(null=NullConfig(**config))
        if bounds is not None:
            message.soft_backlog_tokens, message.hard_backlog_tokens = bounds
        engine = Engine(message)
        engines.append(engine)
        await engine.link.start(PATIENCE_S)
        return engine

    yield _start
    for engine in engines:
        await engine.link.kill()


def request(
    request_id: int, max_tokens: int = 8, resumed_ids: tuple[tuple[int, ...], ...] = ()
) -> AddRequest:
    """Build a request of three prompt tokens."""
    return AddRequest(
        Request(
            request_id, (1, 2, 3), SamplingParams(max_tokens=max_tokens), resumed_ids=resumed_ids
        )
    )


async def test_every_token_of_a_request_arrives_in_order(start: Starter) -> None:
    """Each request delivers max_tokens tokens and ends once, by length."""
    engine = await start()
    for request_id in range(5):
        engine.link.send(request(request_id, max_tokens=20 + request_id))
    await engine.until(lambda: all(engine.ended(i) for i in range(5)))
    assert [len(engine.tokens(i)) for i in range(5)] == [20, 21, 22, 23, 24]
    assert {engine.ended(i) for i in range(5)} == {FinishReason.LENGTH}


async def test_resumed_request_continues_like_the_unbroken_one(start: Starter) -> None:
    """A request with resumed ids delivers exactly what the unbroken run has after them."""
    engine = await start()
    engine.link.send(request(1, max_tokens=30))
    await engine.until(lambda: engine.ended(1) is not None)
    whole = engine.tokens(1)
    engine.link.send(request(2, max_tokens=30, resumed_ids=(tuple(whole[:11]),)))
    await engine.until(lambda: engine.ended(2) is not None)
    assert engine.tokens(2) == whole[11:]


async def test_rejected_request_leaves_the_others_alone(start: Starter) -> None:
    """A request the engine refuses is reported with its field while another finishes."""
    engine = await start(max_model_len=64)
    engine.link.send(request(1, max_tokens=1000))
    engine.link.send(AddRequest(Request(2, (), SamplingParams())))
    engine.link.send(request(3))
    await engine.until(lambda: engine.ended(3) is not None)
    refusals = {r.request_id: r.field for r in engine.reports if isinstance(r, RequestRefused)}
    assert refusals == {1: "", 2: "prompt"}


async def test_request_that_fails_alone_does_not_end_its_neighbours(
    start: Starter,
) -> None:
    """A failed sequence ends with `failed`; one beside it delivers all its tokens."""
    engine = await start(fail_id=7)
    engine.link.send(AddRequest(Request(1, (7,), SamplingParams(max_tokens=8))))
    engine.link.send(request(2))
    await engine.until(lambda: bool(engine.ended(1) and engine.ended(2)))
    assert engine.ended(1) is FinishReason.FAILED
    assert len(engine.tokens(2)) == 8


async def test_death_of_the_engine_is_told_with_its_signal(start: Starter) -> None:
    """A request that kills the engine process is noticed and named."""
    engine = await start(crash_id=7)
    engine.link.send(AddRequest(Request(1, (7,), SamplingParams(max_tokens=8))))
    async with asyncio.timeout(PATIENCE_S):
        died = await engine.link.wait_died()
    assert "SIGABRT" in str(died)
    assert died.cause is DeathCause.SIGNAL
    assert not engine.link.is_alive


@pytest.mark.parametrize(
    ("refusal", "cause"),
    [
        (EngineRefused("OutOfMemoryError", "Tried to allocate 2 GiB"), DeathCause.MEMORY),
        (EngineRefused("RuntimeError", "CUDA error: out of memory"), DeathCause.MEMORY),
        (EngineRefused("MemoryError", ""), DeathCause.MEMORY),
        (EngineRefused("RuntimeError", "CUDA error: unspecified launch failure"), DeathCause.ERROR),
    ],
    ids=["torch", "driver", "host", "other"],
)
async def test_engine_that_found_no_memory_is_told_from_others(
    refusal: EngineRefused, cause: DeathCause
) -> None:
    """Its last word says so, in the words of torch, of the driver or of Python."""
    link = EngineLink(StartEngine(), lambda _: None)
    [body] = FrameReader().feed(REPORTS.encode(refusal))
    link._receive(body)
    link._lost()
    assert (await link.wait_died()).cause is cause


async def test_engine_that_ends_by_itself_is_told_with_its_status(start: Starter) -> None:
    """Its worker hung up, or so it seemed: it left with status 0."""
    engine = await start()
    assert engine.link._writer is not None
    engine.link._writer.close()
    async with asyncio.timeout(PATIENCE_S):
        died = await engine.link.wait_died()
    assert died.cause is DeathCause.EXIT


async def test_idle_engine_beats_and_a_hung_one_does_not(start: Starter) -> None:
    """Silence means a hang: an idle engine moves its clock, one stuck in a step does not."""
    engine = await start(hang_id=7)
    beats = sum(isinstance(r, Beat) for r in engine.reports)
    await engine.until(lambda: sum(isinstance(r, Beat) for r in engine.reports) >= beats + 2)
    engine.link.send(AddRequest(Request(1, (7,), SamplingParams(max_tokens=8))))
    async with asyncio.timeout(PATIENCE_S):
        while engine.link.stalled_s() < 1.5:  # noqa: ASYNC110 - silence raises no event
            await asyncio.sleep(0.1)
    assert engine.link.is_alive


async def test_full_backlog_pauses_the_engine_until_credit_returns(
    start: Starter,
) -> None:
    """Without credit the engine delivers a bounded number of tokens, then goes on by credit.

    Half-way to that bound it admits no request any more; one that comes then waits for credit.
    """
    engine = await start((4096, 8192), max_num_seqs=512, num_pages=20_000, max_model_len=8192)

    def delivered() -> int:
        return sum(sum(r.counts) for r in engine.reports if isinstance(r, StepRecord))

    for request_id in range(64):
        engine.link.send(request(request_id, max_tokens=8000))
    await engine.until(lambda: any(isinstance(r, Beat) and r.paused for r in engine.reports))
    assert 8192 <= delivered() <= 8192 + 64
    late = 64
    engine.link.send(request(late))
    engine.link.send(Credit(4000))
    await engine.until(lambda: delivered() >= 8192 + 4000)
    assert delivered() <= 8192 + 4000 + 64
    assert engine.tokens(late) == []
    for request_id in range(64):
        engine.link.send(AbortRequest(request_id))
    engine.link.send(Credit(8192))
    await engine.until(lambda: engine.ended(late) is not None)
    assert len(engine.tokens(late)) == 8


async def test_start_failure_gives_the_reason() -> None:
    """An engine that cannot be built ends the start with the error's kind and message."""
    link = EngineLink(StartEngine(), lambda _: None)
    with pytest.raises(EngineStartFailed, match="names no engine") as caught:
        await link.start(PATIENCE_S)
    assert caught.value.kind == "ValueError"


_PARENT = textwrap.dedent(
    """
    import asyncio, sys
    from tokenbus.engine.null.null_config import NullConfig
    from tokenbus.engine.types import Request, SamplingParams
    from tokenbus.worker.engine.link import EngineLink
    from tokenbus.worker.messages.engine import AddRequest, StartEngine

    async def main():
        link = EngineLink(StartEngine(null=NullConfig(hang_id=7)), lambda _: None)
        await link.start(300)
        link.send(AddRequest(Request(1, (7,), SamplingParams())))
        print(link.pid, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
    """
)


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_engine_dies_with_its_worker_even_while_it_hangs() -> None:
    """SIGKILL of the worker ends a hung engine process within a second.

    The second is a promise: until then the dead worker's engine holds the GPU's memory.
    """
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", _PARENT, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        engine_pid = int(await parent.stdout.readline())
    assert _is_running(engine_pid)
    os.kill(parent.pid, signal.SIGKILL)
    await parent.wait()
    await until_within(lambda: not _is_running(engine_pid), 1.0)


def test_engine_process_imports_neither_redis_nor_the_text_side() -> None:
    """The process that computes knows no Redis, no pydantic and, with the null engine, no torch."""
    code = (
        "import sys, tokenbus.worker.engine.process as p\n"
        "from tokenbus.engine.null.null_config import NullConfig\n"
        "p.build(p.StartEngine(null=NullConfig()))\n"
        "print([m for m in ('redis', 'pydantic', 'torch', 'structlog') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert output.stdout.strip() == "[]"


async def test_missing_model_is_the_engines_own_error() -> None:
    """A model that is not there ends the start with ModelNotFound."""
    missing = EngineLink(StartEngine(engine=EngineConfig("/no/such/model")), lambda _: None)
    with pytest.raises(ModelNotFound, match="/no/such/model"):
        await missing.start(PATIENCE_S)
