"""Text from tokens as it arrives, against the decode of the whole."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tokenbus.engine.text.byte_table import ByteTable, byte_table
from tokenbus.engine.text.detokenizer import IncrementalDetokenizer, special_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS = [
    "The bus stops for everyone.",
    "Grüße aus Köln! 今日はいい天気ですね。",
    "👩‍👩‍👧‍👦🚌 and 🇩🇪",
    "  leading and  double spaces \n\t",
    "",
]
KINDS = ["byte_level", "byte_fallback"]
BROKEN = "\N{REPLACEMENT CHARACTER}"


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Return each tokenizer whose tokens have bytes."""
    fast: PreTrainedTokenizerFast = request.getfixturevalue(request.param)
    return fast


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode without special tokens."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def id_of(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Look up one token as the vocabulary spells it."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(token_id, int)
    return token_id


def one_shot(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """Decode the whole as transformers does."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def streamed(tokenizer: PreTrainedTokenizerFast, ids: list[int], interval: int) -> str:
    """Join what a detokenizer publishes when tokens arrive `interval` at a time."""
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces: list[str] = []
    for start in range(0, len(ids), interval):
        pieces += detokenizer.push(ids[start : start + interval])
    return "".join([*pieces, detokenizer.flush()])


@pytest.mark.parametrize("interval", [1, 5, 10])
@pytest.mark.parametrize("text", TEXTS)
def test_joined_texts_equal_the_decode_of_the_whole(
    tokenizer: PreTrainedTokenizerFast, text: str, interval: int
) -> None:
    """Whatever the interval, the published texts join to the one-shot decode."""
    ids = encode(tokenizer, text)
    assert streamed(tokenizer, ids, interval) == one_shot(tokenizer, ids)


def test_no_text_ever_holds_half_a_character(tokenizer: PreTrainedTokenizerFast) -> None:
    """Every text is valid by itself, and a token inside a character publishes nothing."""
    ids = encode(tokenizer, "天 🚌 é " * 3)
    texts = IncrementalDetokenizer(tokenizer).push(ids)
    assert len(texts) == len(ids)
    assert BROKEN not in "".join(texts)
    assert "" in texts


@pytest.mark.parametrize("seed", range(20))
def test_random_tokens_equal_the_lossy_decode_of_their_bytes(
    tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    """Bytes that are not UTF-8 become U+FFFD where a lossy decode of the whole puts them."""
    rng = random.Random(seed)
    ids = [rng.randrange(2, len(tokenizer)) for _ in range(60)]
    table = byte_table(tokenizer)
    assert table is not None
    whole = b"".join(map(table.bytes_of, ids)).decode("utf-8", errors="replace")
    if table.strips_first_space:
        whole = whole.removeprefix(" ")
    assert streamed(tokenizer, ids, 1) == whole


@pytest.mark.parametrize("seed", range(20))
def test_random_byte_level_tokens_equal_the_decode_of_the_whole(
    byte_level: PreTrainedTokenizerFast, seed: int
) -> None:
    """The library's own lossy decode agrees, special tokens included."""
    rng = random.Random(seed)
    ids = [rng.randrange(len(byte_level)) for _ in range(200)]
    assert streamed(byte_level, ids, 1) == one_shot(byte_level, ids)


def test_invalid_bytes_do_not_stall_the_text(byte_level: PreTrainedTokenizerFast) -> None:
    """A stream of bytes that never make a character is published while it runs."""
    lone, start = id_of(byte_level, "Ģ"), id_of(byte_level, "ð")
    detokenizer = IncrementalDetokenizer(byte_level)
    assert detokenizer.push([lone] * 50) == (BROKEN,) * 50
    texts = detokenizer.push([start] * 50)
    assert texts == ("", *[BROKEN] * 49)
    assert "".join(detokenizer.push(encode(byte_level, "on"))) == BROKEN + "on"


def test_unfinished_character_is_published_at_the_end(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    """What never was completed shows as U+FFFD, as in the decode of the whole."""
    ids = [id_of(byte_level, "ð"), id_of(byte_level, "Ł")]
    detokenizer = IncrementalDetokenizer(byte_level)
    assert detokenizer.push(ids) == ("", "")
    assert detokenizer.flush() == BROKEN == one_shot(byte_level, ids)
    assert detokenizer.flush() == ""


def test_special_tokens_and_unknown_ids_publish_nothing(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """End of sequence and ids that only pad the model's vocabulary have no text."""
    assert tokenizer.eos_token_id is not None
    ids = [tokenizer.eos_token_id, len(tokenizer) + 5, *encode(tokenizer, "ok")]
    assert "".join(IncrementalDetokenizer(tokenizer).push(ids)).strip() == "ok"


def test_leading_space_depends_on_the_prompt(byte_fallback: PreTrainedTokenizerFast) -> None:
    """SentencePiece's first space is dropped at the start of a text and kept behind a prompt."""
    ids = encode(byte_fallback, "the bus")
    alone = IncrementalDetokenizer(byte_fallback)
    behind = IncrementalDetokenizer(byte_fallback, encode(byte_fallback, "a taxi and"))
    special = IncrementalDetokenizer(byte_fallback, [1])
    assert "".join(alone.push(ids)) == "the bus"
    assert "".join(special.push(ids)) == "the bus"
    assert "".join(behind.push(ids)) == " the bus"


def test_rebuilt_detokenizer_goes_on_with_the_same_text(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Fed with logged ids, a new detokenizer publishes the rest exactly as the old one would."""
    ids = encode(tokenizer, "Köln 天気 👩‍👩‍👧 the end")
    unbroken = IncrementalDetokenizer(tokenizer).push(ids)
    for cut in range(len(ids) + 1):
        resumed = IncrementalDetokenizer(tokenizer)
        assert resumed.push(ids[:cut]) == unbroken[:cut]
        assert resumed.push(ids[cut:]) == unbroken[cut:]


@pytest.mark.parametrize("interval", [1, 5])
def test_other_tokenizers_are_decoded_over_a_window(
    word_suffix: PreTrainedTokenizerFast, interval: int
) -> None:
    """A tokenizer without bytes per token still joins to the decode of the whole."""
    assert byte_table(word_suffix) is None
    ids = encode(word_suffix, "The bus stops for everyone, and the taxi locks its doors. " * 3)
    assert streamed(word_suffix, ids, interval).rstrip() == one_shot(word_suffix, ids).rstrip()


def test_window_does_not_stall_on_what_never_becomes_a_character(
    byte_level: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a window, too, broken bytes are published after at most four tokens."""
    monkeypatch.setattr("tokenbus.engine.text.detokenizer.byte_table", lambda _: None)
    lone = id_of(byte_level, "Ģ")
    texts = IncrementalDetokenizer(byte_level).push([lone] * 12)
    assert all("".join(texts[start : start + 4]) for start in range(0, 12, 4))


def test_table_without_its_tokenizer_gives_the_same_texts(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A process that was sent the bytes of all tokens publishes what the tokenizer would."""
    table = byte_table(tokenizer)
    assert table is not None
    sent = ByteTable.load(table.dump(len(tokenizer)), table.strips_first_space, table.special_texts)
    rng = random.Random(5)
    ids = [*encode(tokenizer, "".join(TEXTS)), *rng.choices(range(len(tokenizer)), k=500)]
    for tail in ([], ids[:3]):
        here, there = IncrementalDetokenizer(tokenizer, tail), IncrementalDetokenizer(sent, tail)
        assert here.push(ids) == there.push(ids)
        assert here.flush() == there.flush()


def test_special_token_that_is_to_be_shown_is_spelled_out(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Of special tokens those asked for have their text, alike with a table that was sent."""
    texts = special_texts(tokenizer)
    shown, *hidden = sorted(texts)
    ids = [*encode(tokenizer, "one"), shown, *hidden, *encode(tokenizer, " two")]
    plain = "".join(IncrementalDetokenizer(tokenizer).push(ids))
    table = byte_table(tokenizer)
    sources: list[Any] = [tokenizer]
    if table is not None:
        dumped = table.dump(len(tokenizer)), table.strips_first_space, table.special_texts
        sources.append(ByteTable.load(*dumped))
    for source in sources:
        text = IncrementalDetokenizer(source, shown_ids=(shown, *encode(tokenizer, "one")))
        spelled = "".join(text.push(ids)) + text.flush()
        assert texts[shown] in spelled
        assert spelled.replace(texts[shown], "") == plain
        assert text.hidden(shown) == ""
        assert all(text.hidden(token_id) == texts[token_id] for token_id in hidden)
