"""JSON written in a hurry means what the standard library would have written."""

from __future__ import annotations

import json

import pytest

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.contract.result import Choice, JobResult

TEXTS = [
    "",
    "plain",
    'quote " back \\ slash /',
    "a\nb\tc\x00\x1f\x7f",
    "é 漢 🛒",
    "half \ud83d a pair",
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_come_back_as_they_were(text: str) -> None:
    """Whatever characters there are, half a surrogate pair included, UTF-8 holds them."""
    value = {"text": text, "ids": [0, -1, 2**40], "none": None, "flag": True, text: [text]}
    assert json.loads(to_json(value)) == value


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("logprobs", [(), ((-float("inf"), 1, [[5, -0.25]]),)])
def test_result_is_read_as_it_was_written(text: str, logprobs: tuple[object, ...]) -> None:
    """With logprobs or without, down to the one of a token that could not come."""
    finish = Finish("length", Usage(3, 0, 1), None, ("length",))
    choice = Choice(0, text, (7,), (len(text),), logprobs, "length")
    result = JobResult("s0-j", 1, finish, (choice,), ((0, 1, 1),))
    read = JobResult.parse(result.dump())
    assert (read.text, read.choices[0].ids, read.finish) == (text, (7,), finish)
    assert [tuple(entry) for entry in read.choices[0].logprobs] == [tuple(e) for e in logprobs]  # type: ignore[arg-type]
