"""Logprobs beside ids: aligned however they are cut, joined and kept; never shifted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.contract.events import Event, Finish
from tokenbus.producer.contract.keys import WIRE_VERSION
from tokenbus.producer.contract.result import JobResult, build_result

DRAWN = [-0.5, 1, [[7, -0.5]]]
FORCED = [-9.25, 300, [[7, -0.5]], True]
# What earlier workers wrote beside three ids, and what it says of them.
LISTS: list[tuple[list[Any], tuple[Any, ...]]] = [
    ([DRAWN, FORCED, DRAWN], (DRAWN, FORCED, DRAWN)),
    ([DRAWN, None, FORCED], (DRAWN, None, FORCED)),
    ([DRAWN], (None, None, None)),
    ([DRAWN, DRAWN], (None, None, None)),
    ([DRAWN] * 4, (None, None, None)),
    ([], ()),
]


def _entry(logprobs: list[Any]) -> bytes:
    return json.dumps(
        [0, 4, "abc", [7, 8, 9], [4, 5, 6], *([logprobs] if logprobs else [])]
    ).encode()


def _message(logprobs: list[Any], **more: Any) -> str:
    wire = {
        "v": WIRE_VERSION,
        "job": "j",
        "epoch": 1,
        "choice": 0,
        "from": 4,
        "to": 6,
        "text": "abc",
    }
    named = {"logprobs": logprobs} if logprobs else {}
    return json.dumps(
        {**wire, "ids": [7, 8, 9], "ends": [4, 5, 6], **named, **more}, separators=(",", ":")
    )


@pytest.mark.parametrize(("written", "read"), LISTS)
def test_list_that_does_not_fit_its_ids_is_not_believed(
    written: list[Any], read: tuple[Any, ...]
) -> None:
    """In an entry, in a message, and in one with a key of a later version: null, never shifted."""
    for event in (
        Event.of_entry("j", b"1-6", _entry(written)),
        parse_message(_message(written)),
        parse_message(_message(written, later=1)),
    ):
        assert event.logprobs == read
        assert event.after(4).logprobs == read[1:]


@pytest.mark.parametrize(("written", "read"), LISTS)
def test_result_of_an_earlier_worker_is_read_by_the_same_rule(
    written: list[Any], read: tuple[Any, ...]
) -> None:
    """Its choices have an entry per id or none, and so has what they replay."""
    event = Event("j", 1, 0, 1, 3, "abc", (7, 8, 9), (1, 2, 3), (DRAWN, DRAWN, DRAWN))
    wire = json.loads(build_result("j", 1, [event], Finish("stop")).dump())
    wire["choices"][0]["logprobs"] = written
    result = JobResult.parse(json.dumps(wire))
    assert result.choices[0].logprobs == read
    for cursor in range(4):
        *events, _ = result.events(cursor)
        assert [item for each in events for item in each.logprobs] == list(read[cursor:])
    assert JobResult.parse(result.dump()) == result


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=8))
def test_parts_with_and_without_entries_are_joined_in_place(parts: list[tuple[int, bool]]) -> None:
    """Merged or collected, an entry stands beside its id, and null beside those without one."""
    events: list[Event] = []
    wanted: list[Any] = []
    for count, has_logprobs in parts:
        start = len(wanted) + 1
        ids = tuple(range(start, start + count))
        entries = tuple([-float(each), 1, []] for each in ids) if has_logprobs else ()
        events.append(Event("j", 1, 0, start, ids[-1], "x" * count, ids, ids, entries))
        wanted += entries or [None] * count
    if not any(wanted):
        wanted = []
    merged = events[0]
    for event in events[1:]:
        joined = merged.merged(event)
        assert joined is not None
        merged = joined
    assert list(merged.logprobs) == wanted
    assert list(build_result("j", 1, events, Finish("stop")).choices[0].logprobs) == wanted
