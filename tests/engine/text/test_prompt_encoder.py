"""Prompts that are tokenised together get the ids that each gets alone."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import processors

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.text.prompt_encoder import PromptEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedTokenizerFast

WORDS = [
    "bus",
    " stops",
    "Grüße ",
    "今日は",
    "👩‍👩‍👧‍👦",
    "  ",
    "\n\t",
    "<|end|>",
    "</s>",
    "<unk>",
    "é",
    "the",
]
KINDS = ["byte_level", "byte_fallback", "word_suffix"]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    """Return each small tokenizer."""
    fast: PreTrainedTokenizerFast = request.getfixturevalue(request.param)
    return fast


def texts(seed: int) -> list[str]:
    """Make texts of many lengths, none first."""
    rng = random.Random(seed)
    return ["".join(rng.choices(WORDS, k=rng.randrange(count + 1))) for count in range(40)]


@pytest.mark.parametrize("is_special", [False, True])
def test_ids_are_those_of_each_text_alone(
    tokenizer: PreTrainedTokenizerFast, is_special: bool
) -> None:
    """A file that cuts and fills what it encodes, and marks where texts begin, changes nothing."""
    tokenizer = deepcopy(tokenizer)
    backend = tokenizer.backend_tokenizer
    first = tokenizer.convert_ids_to_tokens(1)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, 1)]
    )
    for split in (False, True):
        tokenizer.split_special_tokens = split
        backend.enable_truncation(3)
        backend.enable_padding(length=7)
        together = PromptEncoder(tokenizer).encode(texts(1), special=is_special)
        alone = [tokenizer.encode(text, add_special_tokens=is_special) for text in texts(1)]
        assert together == alone


class _Stubborn:
    """A Rust tokenizer that refuses certain texts, and with them all that come along."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend

    def encode_batch_fast(self, given: Sequence[str], **options: Any) -> Any:
        """Encode, unless one of the texts is refused."""
        if any("refused" in text for text in given):
            raise ValueError("no")
        return self._backend.encode_batch_fast(given, **options)


def test_text_that_cannot_be_encoded_takes_no_other_along() -> None:
    """Each of the others has its ids, and the error stands in the place of the text."""
    tokenizer = build_null_tokenizer()
    encoder = PromptEncoder(tokenizer)
    stubborn: Any = _Stubborn(encoder._backend)
    encoder._backend = stubborn
    found = encoder.encode(["a", "refused", "b", "refused too"], special=True)
    assert [found[0], found[2]] == [tokenizer.encode("a"), tokenizer.encode("b")]
    assert [type(found[1]), type(found[3])] == [ValueError, ValueError]


def test_tokenizer_with_an_encode_of_its_own_is_asked_for_each_text(
    byte_level: PreTrainedTokenizerFast,
) -> None:
    """What a class adds to the ids is not lost because many texts come together."""
    kind = type(byte_level)

    class Marking(kind):  # type: ignore[misc, valid-type]
        def encode(self, *given: Any, **options: Any) -> list[int]:
            ids: list[int] = super().encode(*given, **options)
            return [7, *ids]

    build: Callable[..., PreTrainedTokenizerFast] = Marking
    marking = build(tokenizer_object=byte_level.backend_tokenizer)
    found = PromptEncoder(marking).encode(["bus", "the"], special=False)
    plain = byte_level.backend_tokenizer
    assert found == [
        [7, *plain.encode(text, add_special_tokens=False).ids] for text in ("bus", "the")
    ]


def test_first_token_of_every_text_is_not_doubled(byte_level: PreTrainedTokenizerFast) -> None:
    """A text that begins with it has it once; where none is added, a text keeps what it has."""
    tokenizer = deepcopy(byte_level)
    tokenizer.add_special_tokens({"bos_token": "<first>"})
    first = tokenizer.bos_token_id
    given = ["<first>bus", "bus", "<first><first>bus", "<first>", ""]
    plain: list[Any] = [*PromptEncoder(tokenizer).encode(given, special=True)]
    assert plain == [tokenizer.encode(text, add_special_tokens=False) for text in given]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<first> $A", special_tokens=[("<first>", first)]
    )
    expected = [ids if ids[:1] == [first] else [first, *ids] for ids in plain]
    encoder = PromptEncoder(tokenizer)
    assert encoder.encode(given, special=True) == expected
    assert encoder.encode(given, special=False) == plain
