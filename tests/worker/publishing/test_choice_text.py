"""Text of one choice: stop strings across tokens, held-back text, and resuming from ids."""

from __future__ import annotations

import random

import pytest

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import SamplingParams
from tokenbus.worker.publishing.text.choice_text import ChoiceText

TOKENIZER = build_null_tokenizer()


def _ids(text: str) -> list[int]:
    return [int(i) for i in TOKENIZER.encode(text)]


def test_text_held_back_for_a_stop_string_goes_out_with_the_last_token() -> None:
    """A beginning of a stop string that never came is published when the choice ends."""
    text = ChoiceText(TOKENIZER, [], SamplingParams(stop=("stop",)))
    first = text.push(_ids("ab st"))
    assert "".join(first.texts) == "ab "
    last = text.push(_ids("!"), is_last=True)
    assert "".join(last.texts) == "st!"
    ending = ChoiceText(TOKENIZER, [], SamplingParams(stop=("stop",)))
    assert "".join(ending.push(_ids("ab st"), is_last=True).texts) == "ab st"


def test_tokens_after_a_stop_string_do_not_count() -> None:
    """The tokens that complete the stop string are the last, whatever was generated behind them."""
    text = ChoiceText(TOKENIZER, [], SamplingParams(stop=("cd",)))
    released = text.push(_ids("abcdef"))
    assert released.stopped_by == "cd"
    assert released.ids == tuple(_ids("abcd"))
    assert "".join(released.texts) == "ab"


@pytest.mark.parametrize("include", [False, True])
def test_stop_token_is_shown_only_where_stops_are_included(include: bool) -> None:
    """The token that ended the choice belongs to the ids, its text only if asked for."""
    text = ChoiceText(TOKENIZER, [], SamplingParams(include_stop=include))
    ids = _ids("abc")
    released = text.push(ids, is_last=True, stop_token_id=ids[-1])
    assert released.ids == tuple(ids)
    assert "".join(released.texts) == ("abc" if include else "ab")


def test_half_a_character_is_never_published() -> None:
    """The bytes of one character may come in any cut: only whole characters go out."""
    text = ChoiceText(TOKENIZER, [], SamplingParams())
    whole = "a🚌é"
    seen = ""
    for token_id in _ids(whole):
        seen += "".join(text.push([token_id]).texts)
        assert whole.startswith(seen)
    assert seen == whole


def test_choice_rebuilt_from_ids_continues_the_same_text() -> None:
    """Cut anywhere, the text before the cut and that of the rebuilt choice make the whole."""
    rng = random.Random(5)
    ids = [rng.randrange(0, 512) for _ in range(120)] + _ids("ban")
    params = SamplingParams(stop=("ban", " zu"), min_tokens=110)
    whole = ChoiceText(TOKENIZER, [], params).push(ids, is_last=True)
    assert whole.stopped_by is not None
    ids = ids[: len(whole.ids)]
    for cut in range(0, len(ids), 7):
        before = ChoiceText(TOKENIZER, [], params).push(ids[:cut])
        rebuilt = ChoiceText(TOKENIZER, [], params)
        rebuilt.push(ids[:cut])
        after = rebuilt.push(ids[cut:], is_last=True)
        assert before.texts + after.texts == whole.texts
        assert after.stopped_by == whole.stopped_by


@pytest.mark.parametrize("include", [False, True], ids=["hides-stop", "shows-stop"])
@pytest.mark.parametrize("is_stop", [False, True], ids=["length", "stop"])
@pytest.mark.parametrize("whole", ["ab", "a🚌", "é"])
def test_last_token_alone_ends_the_text_as_in_company(
    whole: str, is_stop: bool, include: bool
) -> None:
    """The short way for one last token releases what the long one does, half a character too."""
    ids = _ids(whole)
    for count in range(1, len(ids) + 1):
        short, long = (
            ChoiceText(TOKENIZER, [], SamplingParams(include_stop=include)) for _ in range(2)
        )
        for token_id in ids[: count - 1]:
            assert short.push_plain(token_id) == "".join(long.push([token_id]).texts)
        last = ids[count - 1]
        stop = last if is_stop else None
        released = long.push([last], is_last=True, stop_token_id=stop)
        assert [short.push_last(last, stop)] == list(released.texts)
