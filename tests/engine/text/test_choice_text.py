"""Text of one choice: stop strings across tokens, held-back text, and resuming from ids."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.text.choice_text import ChoiceText
from tokenbus.engine.types import SamplingParams

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


@pytest.fixture(scope="module")
def chatty() -> Any:
    """A byte-level tokenizer with two special tokens."""
    tokenizer = build_null_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>", "<|call|>"]})
    return tokenizer


# Of each stop string: the text before it, with special tokens spelled out, and what is behind it.
_SPECIAL_STOPS = [
    ("<|im_end|>", "ab", "cd"),
    ("\n<|im_end|>", "ab<|im_end|>c", "d"),
    ("b<|call|><|im_end|>c", "a<|call|>b<|call|>", "cc"),
    ("<|call|>cab", "<|call|>ca", "b"),
]


@pytest.mark.parametrize(("stop", "before", "after"), _SPECIAL_STOPS)
@pytest.mark.parametrize("include", [False, True], ids=["without", "with"])
def test_stop_string_with_a_special_token_fires(
    chatty: Any, stop: str, before: str, after: str, include: bool
) -> None:
    """It ends the text although the token is not shown, at every cut and after a rebuild."""
    ids = chatty.encode(before + stop + after, add_special_tokens=False)
    num_kept = len(chatty.encode(before + stop, add_special_tokens=False))
    params = SamplingParams(stop=("never", stop), include_stop=include)
    shown = before.replace("<|im_end|>", "").replace("<|call|>", "") + (stop if include else "")
    for cut in range(num_kept + 1):
        text = ChoiceText(chatty, [], params)
        first = text.push(ids[:cut])
        rest = first if first.stopped_by else text.push(ids[cut:], is_last=True)
        texts = first.texts if rest is first else first.texts + rest.texts
        assert ("".join(texts), rest.stopped_by) == (shown, stop)
        assert len(texts) == num_kept
    spelled = ChoiceText(chatty, [], params, shown_ids=range(len(chatty)))
    released = spelled.push(ids, is_last=True)
    assert ("".join(released.texts), released.stopped_by) == (
        before + (stop if include else ""),
        stop,
    )


def test_stop_string_is_found_in_the_shown_text_around_a_hidden_token(chatty: Any) -> None:
    """A stop string without special tokens is looked for in the text that readers see."""
    ids = chatty.encode("on<|call|>e", add_special_tokens=False)
    assert ChoiceText(chatty, [], SamplingParams(stop=("one",))).push(ids).stopped_by == "one"
    part = ChoiceText(chatty, [], SamplingParams(stop=("im_end",)))
    assert part.push(chatty.encode("<|im_end|>", add_special_tokens=False)).stopped_by is None


def test_special_stop_string_waits_for_min_tokens(chatty: Any) -> None:
    """Within the first `min_tokens` tokens a special token ends nothing."""
    ids = chatty.encode("a<|im_end|>b<|im_end|>", add_special_tokens=False)
    text = ChoiceText(chatty, [], SamplingParams(stop=("<|im_end|>",), min_tokens=2))
    released = text.push(ids)
    assert (released.ids, "".join(released.texts)) == (tuple(ids), "ab")


def test_end_of_the_model_is_no_match_of_a_stop_string(chatty: Any) -> None:
    """A token that ends the choice by its id is not looked at for stop strings."""
    (end,) = chatty.encode("<|im_end|>", add_special_tokens=False)
    text = ChoiceText(chatty, [], SamplingParams(stop=("<|im_end|>",)))
    assert text.push([*_ids("a"), end], is_last=True, stop_token_id=end).stopped_by is None
