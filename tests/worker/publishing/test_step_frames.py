"""A step is encoded once, by the engine process, however many processes publish it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import msgspec
import pytest
from workers.steps import step

from tokenbus.engine.types import Admission, FinishReason
from tokenbus.worker.engine.link import EngineLink
from tokenbus.worker.messages.engine import REPORTS, StartEngine, StepRecord
from tokenbus.worker.messages.publishing import ORDERS
from tokenbus.worker.process.frames import Framing
from tokenbus.worker.publishing.links import ProcessLink
from tokenbus.worker.publishing.publisher_pool import PublisherPool

if TYPE_CHECKING:
    from tokenbus.worker.messages.engine import Report

NUM_PROCESSES = 3


def _a_step() -> StepRecord:
    """Make a step of two jobs, one of which ends."""
    return step(
        tokens={1: [300], 2: [301, 302]},
        ends={2: FinishReason.LENGTH},
        admitted=[Admission(1, 8, 4)],
    )


class _StubWriter:
    """Keeps the frames that a link sends to its process."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, frame: bytes) -> None:
        self.frames.append(frame)


def _links() -> tuple[list[ProcessLink], list[_StubWriter]]:
    """Make links to processes that are up."""
    links = [ProcessLink(Mock(), Mock()) for _ in range(NUM_PROCESSES)]
    writers = [_StubWriter() for _ in links]
    for link, writer in zip(links, writers, strict=True):
        stub: Any = writer
        link._writer = stub
    return links, writers


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Note every message that is encoded."""
    noted: list[object] = []
    encode = Framing.encode

    def _note(framing: Framing[Any], message: object) -> bytes:
        noted.append(message)
        return encode(framing, message)

    monkeypatch.setattr(Framing, "encode", _note)
    return noted


def test_worker_passes_on_the_bytes_of_a_step(encoded: list[object]) -> None:
    """The worker reads a step and sends each publisher process the frame that came, unencoded."""
    links, writers = _links()
    publishers = PublisherPool(Mock(), links)
    came = REPORTS.encode(_a_step())
    encoded.clear()

    def publish(report: Report) -> None:
        assert isinstance(report, StepRecord)
        publishers.take_step(report)

    engine = EngineLink(StartEngine(), publish)
    engine._receive(came[4:])
    assert [writer.frames for writer in writers] == [[came]] * NUM_PROCESSES
    assert encoded == []


def test_step_from_elsewhere_is_encoded_once(encoded: list[object]) -> None:
    """A record that came from no engine process is framed for the first link and kept."""
    links, writers = _links()
    made = _a_step()
    PublisherPool(Mock(), links).take_step(made)
    assert encoded == [made]
    assert [writer.frames for writer in writers] == [[made.frame]] * NUM_PROCESSES


def test_publisher_process_reads_what_the_engine_process_wrote() -> None:
    """A step is the same message to the worker and to a publisher process, and carries no frame."""
    made = _a_step()
    body = REPORTS.encode(made)[4:]
    assert made.frame[4:] == body
    assert ORDERS.decode(body) == REPORTS.decode(body) == made
    assert msgspec.msgpack.encode(made) == body
