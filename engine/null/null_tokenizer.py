"""A tokenizer without a model: bytes in, short words out, built in memory.

The null engine draws its pseudo-tokens from the words; prompts encode to one id per byte.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.text.generated_tokenizer import CHAT_TEMPLATE, byte_alphabet

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerFast

_NUM_BYTES = 256
_ONSETS = ["b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"]
_RIMES = ["a", "e", "i", "o", "u", "an", "en", "in", "on", "un", "ar", "er", "ir", "or", "ur", "é"]


def build_null_tokenizer(vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Build a fast tokenizer of 256 bytes and `vocab_size` - 256 words, each with a space before.

    Raises: ValueError if there are more words than the syllables give.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = byte_alphabet()
    space = alphabet[ord(" ")]
    words = [f"{onset}{rime}" for onset in _ONSETS for rime in _RIMES]
    num_words = vocab_size - _NUM_BYTES
    if not 0 < num_words <= len(words):
        raise ValueError(f"vocab_size {vocab_size}: 257 to {_NUM_BYTES + len(words)}")
    vocab = {char: byte for byte, char in enumerate(alphabet)}
    for number, word in enumerate(words[:num_words]):
        spelled = "".join(alphabet[byte] for byte in word.encode())
        vocab[space + spelled] = _NUM_BYTES + number
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    fast = build(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    fast.chat_template = CHAT_TEMPLATE
    return fast
