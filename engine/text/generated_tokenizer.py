"""A byte-level BPE tokenizer for any vocabulary size: for models whose weights are drawn.

Such a model emits every id, so every id has to have text. The vocabulary is the 256 bytes, pairs of
letters, and words of up to four letters with a space before, each made by one merge.
"""

from __future__ import annotations

import json
import shutil
from itertools import islice, product
from typing import TYPE_CHECKING

from tokenbus.engine.errors import ModelBroken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_NOT_COPIED = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")


def byte_alphabet() -> list[str]:
    """Return the printable stand-ins of byte-level BPE, in byte order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def build_generated_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer of exactly `vocab_size` ids, each with at least one character.

    Raises: ModelBroken if there are fewer ids than bytes or more than words.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = byte_alphabet()
    vocab = {char: byte for byte, char in enumerate(alphabet)}
    merges = list(islice(_merges(alphabet[ord(" ")]), max(0, vocab_size - len(vocab))))
    for left, right in merges:
        vocab[left + right] = len(vocab)
    if len(vocab) != vocab_size:
        raise ModelBroken(f"a tokenizer can be generated for 256 to {len(vocab)} ids")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    fast = build(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def vocab_size_of(folder: Path) -> int:
    """Return the size of a model's vocabulary. Raises: ModelBroken if its config tells none."""
    config = json.loads((folder / "config.json").read_text())
    size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    if not isinstance(size, int):
        raise ModelBroken(f"config.json of {folder} has no vocab_size")
    return size


def clothe(model: Path, folder: Path, *, with_weights: bool = True) -> None:
    """Fill an empty folder with a model's files, but a generated tokenizer.

    The files are the same ones where both folders lie on one file system, else copies: symbolic
    links that lead out of a model's folder are refused when it is read. Folders are left out.
    Raises: ModelBroken; OSError where there is no room for the copies.
    """
    for path in model.iterdir():
        is_left_out = path.name.startswith(_NOT_COPIED) or not path.is_file()
        if is_left_out or (not with_weights and path.suffix == ".safetensors"):
            continue
        try:
            (folder / path.name).hardlink_to(path.resolve())
        except OSError:
            shutil.copyfile(path, folder / path.name)
    build_generated_tokenizer(vocab_size_of(model)).save_pretrained(folder)


def _merges(space: str) -> Iterator[tuple[str, str]]:
    """Yield merges, each of two tokens that are there already."""
    pairs = ["".join(pair) for pair in product(_LETTERS, repeat=2)]
    yield from product(_LETTERS, repeat=2)
    yield from ((space, letter) for letter in _LETTERS)
    yield from ((space, pair) for pair in pairs)
    yield from ((space + first, second) for first, second in product(pairs, repeat=2))
