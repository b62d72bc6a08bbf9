"""Small tokenizers of the families: bytes, and beside them the marks that their models have."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from golden_answers import golden_answers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenbus.engine.chat.chat_format import format_named

if TYPE_CHECKING:
    from collections.abc import Callable

ANSWERS = [each for each in golden_answers() if each.chat_format.calls is not None]
FAMILIES = sorted({each.family for each in ANSWERS})
# One for each kind of syntax and marks; the rest runs in `make test-full`.
EVERY_TIME = frozenset(
    {"gemma-4", "gpt-oss", "llama-3", "llama-4", "mistral", "qwen3", "qwen3-coder"}
)
# Marks that are tokens of their families' models; all others are spelled by the vocabulary.
_TOKEN = re.compile(r"<[^<>\n= ]+>|\[/?[A-Z_]{4,}\]")
END = "<|end of answer|>"


@cache
def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, with the family's marks beside them, special to every second."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE({char: idx for idx, char in enumerate(alphabet)}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_alone.decoder = decoders.ByteLevel()
    marks = dict.fromkeys(
        mark for text in format_named(family).texts for mark in _TOKEN.findall(text)
    )
    is_special = FAMILIES.index(family) % 2 == 0 if family in FAMILIES else False
    bytes_alone.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    bytes_alone.add_tokens(
        [AddedToken(mark, special=is_special, normalized=False) for mark in marks]
    )
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return build(tokenizer_object=bytes_alone, eos_token=END)
