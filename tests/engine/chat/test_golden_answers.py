"""Every family's answers are taken apart as their own documentation means them, however cut."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from golden_answers import Golden, golden_answers, joined, plain

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


@pytest.mark.parametrize("family", ANSWERS)
def test_answers_of_a_family_are_taken_apart(family: str) -> None:
    """Each typed answer means what stands beside it, in one piece or in hundreds."""
    for golden in ANSWERS[family]:
        message, _ = _read(golden, [golden.answer])
        assert message.content == golden.content, golden.title
        assert message.reasoning == golden.reasoning, golden.title
        calls = [
            (call.name, _spelled(call.arguments, call.is_complete), call.is_complete)
            for call in message.calls
        ]
        assert calls == golden.calls, golden.title
        _check_deltas(golden, message)


def _spelled(arguments: str, is_complete: bool) -> str:
    return plain(arguments) if is_complete else arguments


def _check_deltas(golden: Golden, whole: WrittenMessage) -> None:
    """Read an answer whole and character by character: its deltas joined are the message."""
    calls = [(call.id, call.name, call.arguments) for call in whole.calls]
    for pieces in (list(golden.answer), [golden.answer]):
        message, deltas = _read(golden, pieces)
        assert message == whole, golden.title
        assert joined(deltas) == (whole.content, whole.reasoning, calls), golden.title
