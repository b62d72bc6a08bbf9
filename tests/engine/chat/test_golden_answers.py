"""Every family's answers are taken apart as their own documentation means them, however cut."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from golden_answers import Golden, golden_answers, joined, plain

from tokenbus.engine.chat.chat_format import FORMATS

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


def test_every_family_has_ten_answers_of_its_own() -> None:
    """No family is read by what another one's models write, and no answers belong to none."""
    assert set(ANSWERS) == set(FORMATS)
    assert {family: len(answers) for family, answers in ANSWERS.items() if len(answers) < 10} == {}
    for family, answers in ANSWERS.items():
        texts = {each.answer for each in answers}
        assert len(texts) == len(answers), family
        if FORMATS[family].calls is not None:
            assert any(len(each.calls) > 1 for each in answers) or not _is_parallel(family), family
            assert any(not json.loads(arguments) for arguments in _arguments(answers)), family


def _is_parallel(family: str) -> bool:
    written = FORMATS[family].calls
    return written is not None and written.is_parallel


def _arguments(answers: Iterable[Golden]) -> list[str]:
    calls = [call for each in answers for call in each.calls]
    return [arguments for _, arguments, is_complete in calls if is_complete]


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
