"""The bytes of every token, for tokenizers whose tokens have bytes of their own."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase


class ByteTable:
    """The bytes of every token, looked up on first use.

    A table made of all of them (`dump`) needs no tokenizer, for processes without the library.
    """

    def __init__(self, tokenizer: Any, decoders: Sequence[dict[str, Any]]) -> None:
        """Read the decoder steps of a tokenizer of the tokenizers library."""
        kinds = {step["type"] for step in decoders}
        self._tokenizer = tokenizer
        self._is_byte_level = "ByteLevel" in kinds
        self._has_byte_fallback = "ByteFallback" in kinds
        replacements = map(_replacement, decoders)
        self._replacements = [pair for pair in replacements if pair is not None]
        self.strips_first_space = any(_strips_first_space(step) for step in decoders)
        self._texts: dict[int, str | None] = {}
        added = tokenizer.get_added_tokens_decoder()
        self.special_texts: Mapping[int, str] = {
            token_id: token.content for token_id, token in added.items() if token.special
        }
        self._bytes = dict.fromkeys(self.special_texts, b"")

    @classmethod
    def load(
        cls,
        token_bytes: Sequence[bytes],
        strips_first_space: bool,
        special_texts: Mapping[int, str],
    ) -> ByteTable:
        """Make a table of what `dump` returned, and of how special tokens are spelled."""
        table = cls.__new__(cls)
        table.special_texts = special_texts
        table._tokenizer = _NoTokenizer()
        table._bytes = dict(enumerate(token_bytes))
        table._texts = {}
        table.strips_first_space = strips_first_space
        return table

    def dump(self, vocab_size: int) -> list[bytes]:
        """Return the bytes of each id below `vocab_size`."""
        return [self.bytes_of(token_id) for token_id in range(vocab_size)]

    def bytes_of(self, token_id: int) -> bytes:
        """Return a token's bytes; special tokens and ids outside the vocabulary have none."""
        known = self._bytes.get(token_id)
        if known is None:
            token = self._tokenizer.id_to_token(token_id)
            known = self._bytes[token_id] = b"" if token is None else self._convert(token)
        return known

    def text_of(self, token_id: int) -> str | None:
        """Return the text of a token whose bytes are whole characters, None for any other."""
        try:
            return self._texts[token_id]
        except KeyError:
            pass
        text: str | None
        try:
            text = self.bytes_of(token_id).decode()
        except UnicodeDecodeError:
            text = None
        self._texts[token_id] = text
        return text

    def _convert(self, token: str) -> bytes:
        if self._is_byte_level:
            alphabet = _byte_of_character()
            if all(character in alphabet for character in token):
                return bytes(alphabet[character] for character in token)
            return token.encode()
        if self._has_byte_fallback and _is_byte_token(token):
            return bytes([int(token[3:5], 16)])
        for old, new in self._replacements:
            token = token.replace(old, new)
        return token.encode()


class _NoTokenizer:
    """Knows no token beyond those in the table."""

    def id_to_token(self, token_id: int) -> None:  # noqa: ARG002 - as the library's
        return None


class ShowingTable:
    """A byte table in which some special tokens have their text."""

    def __init__(self, table: ByteTable, shown: Mapping[int, str]) -> None:
        self._table, self._shown = table, shown
        self.strips_first_space = table.strips_first_space

    def bytes_of(self, token_id: int) -> bytes:
        """Return a token's bytes."""
        text = self._shown.get(token_id)
        return self._table.bytes_of(token_id) if text is None else text.encode()

    def text_of(self, token_id: int) -> str | None:
        """Return the text of a token whose bytes are whole characters, None for any other."""
        text = self._shown.get(token_id)
        return self._table.text_of(token_id) if text is None else text


@lru_cache(maxsize=4)
def byte_table(tokenizer: PreTrainedTokenizerBase) -> ByteTable | None:
    """Return the byte table of a tokenizer, or None if its tokens have no bytes of their own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    if backend is None or decoder is None:
        return None
    state = json.loads(decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    return ByteTable(backend, steps) if all(map(_is_per_token, steps)) else None


@lru_cache(maxsize=1)
def _byte_of_character() -> dict[str, int]:
    """Return the alphabet of byte-level BPE (Radford et al. 2019).

    Printable Latin-1 stands for itself; the other bytes, in order, for the characters from 256 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


def _is_byte_token(token: str) -> bool:
    """Return True for the <0x..> tokens of SentencePiece."""
    return (
        len(token) == 6
        and token.startswith("<0x")
        and token.endswith(">")
        and all(digit in "0123456789ABCDEFabcdef" for digit in token[3:5])
    )


def _replacement(step: dict[str, Any]) -> tuple[str, str] | None:
    """Return (old, new) if a decoder step replaces a string inside tokens."""
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if step["type"] == "Replace" and "String" in step["pattern"]:
        return step["pattern"]["String"], step["content"]
    return None


def _strips_first_space(step: dict[str, Any]) -> bool:
    """Return True if a decoder step drops a space at the start of the text."""
    if step["type"] == "Metaspace":
        return bool(step.get("prepend_scheme", "always") != "never")
    return bool(step["type"] == "Strip" and step["content"] == " " and step["start"] == 1)


def _is_per_token(step: dict[str, Any]) -> bool:
    """Return True if a decoder step works on each token by itself, the first space aside."""
    if step["type"] == "Strip":
        is_space = step["content"] == " " and step["start"] <= 1
        return bool(is_space and step["stop"] == 0)
    if step["type"] == "Replace":
        return _replacement(step) is not None
    return step["type"] in {"ByteLevel", "ByteFallback", "Fuse", "Metaspace"}
