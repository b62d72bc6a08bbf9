"""Small tokenizers of the three kinds, built in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Callable

SENTENCES = [
    "The bus stops for everyone, and the taxi locks its doors.",
    "Grüße aus Köln! L'été à Genève. Ελλάδα και Κύπρος.",
    "今日はいい天気ですね。我们坐公共汽车去学校。",
    "Emoji: 👩‍👩‍👧‍👦 🚌🚏 🇩🇪, and a flag.  Two  spaces.\n\tTabs\r\n",
]


def wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    """Give a tokenizer the interface of transformers."""
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return build(tokenizer_object=tokenizer, **special)


@pytest.fixture(scope="session")
def byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE with merges that end inside characters, and a special token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrap(tokenizer, eos_token="<|end|>")


@pytest.fixture(scope="session")
def byte_fallback() -> PreTrainedTokenizerFast:
    """SentencePiece BPE as Llama 2 has it: metaspace, byte fallback, first space dropped."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    characters = sorted(set("▁" + SENTENCES[0] + "üßöé今日はいい"))
    pieces += [character for character in characters if character != " "]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("s", "t"), ("▁", "a")]
    pieces += [first + second for first, second in merges]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrap(tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="session")
def word_suffix() -> PreTrainedTokenizerFast:
    """BPE with end-of-word marks as GPT-1 has it: its tokens have no bytes of their own."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>"
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return wrap(tokenizer, unk_token="<unk>")
