"""Events and results: cut, merged, replayed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.contract.events import Event, Failure, Finish
from tokenbus.producer.contract.result import JobResult, build_result
from tokenbus.producer.errors import SchemaMismatch

PIECES = st.lists(st.text(max_size=4), min_size=1, max_size=12)


def _events(pieces: list[str], cuts: list[int], num_choices: int = 1) -> list[Event]:
    """Spread tokens with the given texts over entries that end at `cuts`, choice after choice."""
    events: list[Event] = []
    ends = [0] * num_choices
    borders = sorted({*cuts, len(pieces)} - {0})
    first = 0
    for number, last in enumerate(border for border in borders if border <= len(pieces)):
        choice = number % num_choices
        made: list[int] = []
        for piece in pieces[first:last]:
            ends[choice] += len(piece)
            made.append(ends[choice])
        text = "".join(pieces[first:last])
        ids = tuple(range(first, last))
        events.append(Event("j", 1, choice, first + 1, last, text, ids, tuple(made)))
        first = last
    return events


@given(PIECES, st.lists(st.integers(0, 12), max_size=5), st.integers(0, 12), st.integers(1, 3))
def test_replay_from_any_cursor_gives_the_rest(
    pieces: list[str], cuts: list[int], cursor: int, num_choices: int
) -> None:
    """A result replays, from any cursor and with any number of choices, exactly what came later."""
    events = _events(pieces, cuts, num_choices)
    result = build_result("j", 1, events, Finish("stop"), num_choices)
    again = JobResult.parse(result.dump())
    assert again == result
    cursor = min(cursor, len(pieces))
    replayed = list(again.events(cursor))
    assert [i for e in replayed[:-1] for i in e.ids] == list(range(cursor, len(pieces)))
    for choice in range(num_choices):
        expected = "".join(
            e.after(cursor).text for e in events if e.choice == choice and e.to > cursor
        )
        assert "".join(e.text for e in replayed if e.choice == choice) == expected
    assert replayed[-1].finish is not None
    assert (replayed[-1].start, replayed[-1].to) == (len(pieces) + 1, len(pieces))


@given(PIECES, st.lists(st.integers(0, 12), max_size=5))
def test_merging_neighbours_loses_nothing(pieces: list[str], cuts: list[int]) -> None:
    """Merged events carry the same text, ids and ends."""
    events = _events(pieces, cuts)
    merged = events[0]
    for event in events[1:]:
        joined = merged.merged(event)
        assert joined is not None
        merged = joined
    assert merged.text == "".join(pieces)
    assert merged.ids == tuple(range(len(pieces)))
    assert len(merged.ends) == len(pieces)


def test_events_of_different_choices_or_with_a_hole_do_not_merge() -> None:
    """Only what follows directly in the same choice is joined; an end never is."""
    first = Event("j", 1, 0, 1, 2, "ab", (1, 2), (1, 2))
    assert first.merged(Event("j", 1, 1, 3, 3, "c", (3,), (1,))) is None
    assert first.merged(Event("j", 1, 0, 4, 4, "c", (3,), (3,))) is None
    assert first.merged(Event("j", 1, 0, 3, 2, finish=Finish("stop"))) is None


def test_event_survives_the_wire() -> None:
    """What `dump` writes, `parse` reads, the failure of a job included."""
    finish = Finish("failed", Usage(1, 2, 3), Failure("poison", "bad", "prompt"), ("stop",))
    for event in (
        Event("j", 2, 1, 4, 5, "hé", (7, 8), (9, 10), ([1, -0.5],)),
        Event("j", 2, 0, 6, 5, finish=finish),
    ):
        wire = json.loads(json.dumps(event.dump()))
        parsed = parse_message(json.dumps(wire))
        assert (parsed.text, parsed.ids, parsed.ends) == (event.text, event.ids, event.ends)
        assert parsed.finish == event.finish


def test_event_of_another_version_is_refused() -> None:
    """An event of a later wire version is never read as one of ours."""
    with pytest.raises(SchemaMismatch, match="version 3; this release speaks 1 and 2"):
        parse_message('{"v":3,"job":"j"}')


@pytest.mark.parametrize(
    "change",
    [
        {"from": float("-inf")},
        {"epoch": 1e999},
        {"epoch": "7" * 5000},
        {"finish": "stop"},
        {"job": ["j"]},
        {"tenant": {}},
        {"text": 5},
        {"ids": ["x"]},
        {"v": True},
    ],
    ids=lambda change: "-".join(change),
)
def test_message_that_is_no_event_is_told_so(change: dict[str, object]) -> None:
    """Whoever may publish can write anything: a reader leaves it out, and its connection stays."""
    event = {**Event("j", 1, 0, 1, 1, "a", (5,), (1,)).dump(), **change}
    with pytest.raises((ValueError, TypeError)):
        parse_message(json.dumps(event))


def test_message_that_nests_without_end_is_told_so() -> None:
    """The same of one that no parser follows."""
    for head in ('{"v":2,"x":', ""):
        with pytest.raises(ValueError, match="no event"):
            parse_message(head + "[" * 200_000)
