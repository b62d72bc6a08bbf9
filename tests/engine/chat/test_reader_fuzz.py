"""Made-up answers in every format: cut anywhere, ended anywhere, read back as they were made."""

from __future__ import annotations

import re
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest
from chat_answers import MadeAnswer, made_answer
from golden_answers import golden_answers, plain

from tokenbus.engine.chat.chat_format import FORMATS

if TYPE_CHECKING:
    from tokenbus.engine.chat.written_message import WrittenMessage

# Of a mark that ends an answer so much may be text; of one that is words, all but its end.
SHORT_BEGINNING = 3
# Where no mark opens a call, it is one from its name on.
BARE_BEGINNING = re.compile(r'[\[{\s]+(?:"\w*"?)?:?')


def _check(answer: MadeAnswer) -> WrittenMessage:
    """Read an answer at once, and find the parts it was made of."""
    message = answer.read([answer.text])
    assert message.content == answer.content, answer.text
    assert message.reasoning == answer.reasoning, answer.text
    calls = [(call.name, plain(call.arguments)) for call in message.complete_calls]
    assert calls == [(name, plain(arguments)) for name, arguments in answer.calls], answer.text
    return message


def _check_cuts(answer: MadeAnswer, whole: WrittenMessage, random: Random, num_cuts: int) -> None:
    """Read an answer in pieces, and find the same message."""
    places = sorted(random.choices(range(len(answer.text) + 1), k=num_cuts))
    pieces = [answer.text[a:b] for a, b in pairwise([0, *places, len(answer.text)])]
    assert answer.read(pieces) == whole, (pieces, answer.chat_format.name)


def _check_end(answer: MadeAnswer, whole: WrittenMessage, end: int) -> None:
    """End an answer early: whole calls stay, and what is left of the rest shows no mark."""
    message = answer.read([answer.text[:end]])
    assert message.complete_calls == whole.complete_calls[: len(message.complete_calls)]
    assert len(message.calls) - len(message.complete_calls) <= 1
    for shown, of in ((message.content, whole.content), (message.reasoning, whole.reasoning)):
        shared = next((n for n, (a, b) in enumerate(zip(shown, of, strict=False)) if a != b), None)
        left = shown[len(of) if shared is None else shared :].strip()
        is_short = len(left) <= SHORT_BEGINNING or left[0].isalpha()
        assert is_short or BARE_BEGINNING.fullmatch(left), (answer.text[:end], left)


def test_made_answers_are_read_back_in_pieces() -> None:
    """What a family's format writes, its reader takes apart, in whatever pieces it comes."""
    random = Random("few")
    for family in [*FORMATS, *FORMATS]:
        answer = made_answer(family, random)
        whole = _check(answer)
        _check_cuts(answer, whole, random, num_cuts=8)
        _check_end(answer, whole, random.randint(0, len(answer.text)))


@pytest.mark.slow
@pytest.mark.parametrize("family", FORMATS)
def test_made_answers_hold_through_thousands_of_cuts(family: str) -> None:
    """Over 56 families 336,000 cuts, each character of some answers, and each end."""
    random = Random(f"many {family}")
    for number in range(300):
        answer = made_answer(family, random)
        whole = _check(answer)
        _check_cuts(answer, whole, random, num_cuts=20)
        if number % 10 == 0:
            assert answer.read(answer.text) == whole
            for end in range(len(answer.text)):
                _check_end(answer, whole, end)


@pytest.mark.slow
def test_typed_answers_hold_at_each_cut() -> None:
    """Each typed answer in two pieces, cut at each of its characters."""
    for golden in golden_answers():
        messages = set()
        for cut in range(len(golden.answer) + 1):
            reader = golden.reader()
            for piece in (golden.answer[:cut], golden.answer[cut:]):
                reader.push(piece)
            reader.finish()
            messages.add(reader.message)
        assert len(messages) == 1, (golden.family, golden.title)
