"""A transcript gives back every entry from any index, and the result that readers saw."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.events import Event, Failure, Finish
from tokenbus.worker.publishing.text.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Sequence

Chunks = list[tuple[int, list[str]]]

chunks = st.lists(
    st.tuples(st.integers(0, 2), st.lists(st.sampled_from(["", "a", "é ", "🚌x"]), max_size=4)),
    max_size=20,
)


ENTRY = [-0.5, 1, [[5, -0.5]]]


def _filled(parts: Chunks, job_id: str = "j", logprobs: Sequence[Any] = ()) -> Transcript:
    transcript = Transcript(job_id, 3)
    next_id = 100
    for choice, texts in parts:
        ids = list(range(next_id, next_id + len(texts)))
        next_id += len(texts)
        transcript.append(choice, ids, texts, list(logprobs) * len(ids))
    return transcript


def _replay(transcript: Transcript, index: int) -> list[Event]:
    events = []
    while index < transcript.last:
        choice, start, text, ids, ends, _ = transcript.slice_after(index)
        index = start + len(ids) - 1
        events.append(Event("j", 1, choice, start, index, text, tuple(ids), tuple(ends)))
    return events


@given(chunks, st.integers(0, 80))
def test_entries_after_any_index_are_gapless_and_complete(parts: Chunks, index: int) -> None:
    """From any index the entries follow each other to the last token, one choice each."""
    transcript = _filled(parts)
    events = _replay(transcript, index)
    position = min(index, transcript.last)
    for event in events:
        assert event.start == position + 1
        assert len(event.ids) == len(event.ends) == event.to - event.start + 1
        position = event.to
    assert position == max(transcript.last, min(index, transcript.last))


@given(chunks)
def test_transcript_read_from_its_log_is_the_same(parts: Chunks) -> None:
    """What a later owner restores from the logged entries equals what was logged."""
    transcript = _filled(parts)
    restored = Transcript("j", 3)
    restored.restore(_replay(transcript, 0))
    finish = Finish("stop", Usage(1, 0, transcript.last))
    assert restored.result(1, finish).dump() == transcript.result(1, finish).dump()


@given(chunks, st.integers(0, 80))
def test_result_replays_what_the_entries_said(parts: Chunks, cursor: int) -> None:
    """A reader who comes after the end reads the same text per choice as one who was there."""
    transcript = _filled(parts)
    cursor = min(cursor, transcript.last)
    result = transcript.result(1, Finish("stop"))
    live: dict[int, str] = {}
    for event in _replay(transcript, cursor):
        live[event.choice] = live.get(event.choice, "") + event.text
    late: dict[int, str] = {}
    for event in result.events(cursor):
        if event.finish is None:
            late[event.choice] = late.get(event.choice, "") + event.text
    assert {k: v for k, v in late.items() if v} == {k: v for k, v in live.items() if v}


@given(
    chunks,
    st.sampled_from(["j", "s1-j@shop/x", "j@a"]),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.booleans(),
)
def test_stored_result_is_that_of_the_contract(
    parts: Chunks, job_id: str, version: int, has_logprobs: bool, is_failed: bool
) -> None:
    """However it is put together, its bytes are those of `JobResult`."""
    transcript = _filled([*parts, (0, ["\ud83d"])], job_id, [ENTRY] if has_logprobs else ())
    finish = Finish("stop", Usage(1, 0, transcript.last), choices=("stop", "length", "stop"))
    if is_failed:
        finish = Finish("failed", Usage(1, 0, 0), Failure("internal", "é", "n"))
    for prompt_logprobs in ((), (None, ENTRY)):
        result = replace(
            transcript.result(1, finish), version=version, prompt_logprobs=prompt_logprobs
        )
        stored = transcript.dump_result(1, finish, finish.dump(), version, prompt_logprobs)
        assert stored == result.dump()
