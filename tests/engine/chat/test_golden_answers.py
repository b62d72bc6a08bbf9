"""Every family's answers are taken apart as their own documentation means them, however cut."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from golden_answers import Golden, golden_answers, plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.engine.chat.delta import MessageDelta
    from tokenbus.engine.chat.written_message import WrittenMessage

ANSWERS: dict[str, list[Golden]] = defaultdict(list)
for each in golden_answers():
    ANSWERS[each.family].append(each)


def _read(golden: Golden, pieces: Iterable[str]) -> tuple[WrittenMessage, list[MessageDelta]]:
    reader = golden.reader()
    deltas = [*map(reader.push, pieces), reader.finish()]
    return reader.message, deltas


def _joined(deltas: list[MessageDelta]) -> tuple[str, str, list[tuple[str, str, str]]]:
    """Join deltas as a client does that knows no formats."""
    calls: dict[int, list[str]] = {}
    for each in (call for delta in deltas for call in delta.calls):
        parts = calls.setdefault(each.index, ["", "", ""])
        parts[:] = [parts[0] + each.id, parts[1] + each.name, parts[2] + each.arguments]
    assert list(calls) == list(range(len(calls)))
    return (
        "".join(delta.content for delta in deltas),
        "".join(delta.reasoning for delta in deltas),
        [(parts[0], parts[1], parts[2]) for parts in calls.values()],
    )


@pytest.mark.parametrize("family", ANSWERS)
def test_answers_of_a_family_are_taken_apart(family: str) -> None:
    """Each typed answer means what stands beside it."""
    for golden in ANSWERS[family]:
        message, _ = _read(golden, [golden.answer])
        assert message.content == golden.content, golden.title
        assert message.reasoning == golden.reasoning, golden.title
        calls = [
            (call.name, _spelled(call.arguments, call.is_complete), call.is_complete)
            for call in message.calls
        ]
        assert calls == golden.calls, golden.title


def _spelled(arguments: str, is_complete: bool) -> str:
    return plain(arguments) if is_complete else arguments


@pytest.mark.parametrize("family", ANSWERS)
def test_deltas_add_up_however_an_answer_is_cut(family: str) -> None:
    """Whole or character by character: one message, and its deltas joined are that message."""
    for golden in ANSWERS[family]:
        whole, deltas = _read(golden, [golden.answer])
        for pieces in (list(golden.answer), [golden.answer]):
            message, deltas = _read(golden, pieces)
            assert message == whole, golden.title
            assert _joined(deltas) == (
                message.content,
                message.reasoning,
                [(call.id, call.name, call.arguments) for call in message.calls],
            ), golden.title
