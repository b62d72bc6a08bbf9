"""The detokeniser: tokens to text, one at a time, never half a character.

Two kinds of tokenizer cover the causal LMs in use: byte-level BPE, and SentencePiece with byte
fallback. Both map each token to bytes whatever stands beside it, so text is one incremental UTF-8
decoding of a byte stream: constant work per token, and at most three bytes are ever waiting.
Bytes that are not UTF-8 become U+FFFD at once, as in a lossy decode of the whole. (SentencePiece's
own decoder replaces a whole run of byte tokens when one is invalid; a stream cannot take back the
valid characters before it and keeps them.) Any other tokenizer is decoded over a sliding window.
"""

from __future__ import annotations

import codecs
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Tokens before the new ones that a window decoder decodes again, for their effect on spaces.
WINDOW_CONTEXT = 8
# A character has at most four bytes, hence tokens; what is still broken after that stays broken.
_MAX_TOKENS_PER_CHARACTER = 4


class _TokenText(Protocol):
    """Turns tokens into text, one by one."""

    def push(self, token_id: int) -> str:
        """Return the text that this token completes."""
        ...

    def flush(self) -> str:
        """Return what was waiting for more bytes."""
        ...


class IncrementalDetokenizer:
    """The text of one choice.

    The texts depend on the ids alone: fed with the ids of a log, a new detokenizer stands where the
    old one stood and goes on with exactly the text that the old one would have published.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | ByteTable,
        prompt_tail_ids: Sequence[int] = (),
    ) -> None:
        """Start behind the prompt; its last few ids decide on a leading space."""
        tail = prompt_tail_ids[-WINDOW_CONTEXT:]
        self._decoder: _TokenText
        if isinstance(tokenizer, ByteTable):
            self._decoder = _ByteDecoder(tokenizer, tail)
        elif (table := byte_table(tokenizer)) is not None:
            self._decoder = _ByteDecoder(table, tail)
        else:
            self._decoder = _WindowDecoder(tokenizer, tail)
        self.push_one = self._decoder.push

    def push(self, ids: Iterable[int]) -> tuple[str, ...]:
        """Return the text that each token completes; "" for one that ends inside a character."""
        return tuple(self._decoder.push(token_id) for token_id in ids)

    def flush(self) -> str:
        """End the text: return U+FFFD for a character that never was completed."""
        return self._decoder.flush()


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
        self._bytes = {token_id: b"" for token_id, token in added.items() if token.special}

    @classmethod
    def load(cls, token_bytes: Sequence[bytes], strips_first_space: bool) -> ByteTable:
        """Make a table of what `dump` returned."""
        table = cls.__new__(cls)
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


class _ByteDecoder:
    """Decodes the byte stream of a choice."""

    def __init__(self, table: ByteTable, tail: Sequence[int]) -> None:
        self._bytes_of = table.bytes_of
        self._text_of = table.text_of
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        # The space that SentencePiece writes before the first word of a text is not part of it.
        self._drops_space = table.strips_first_space and not any(map(table.bytes_of, tail))
        # Between characters, and no space is to be dropped: the text of a whole token is its own.
        self._is_plain = not self._drops_space

    def push(self, token_id: int) -> str:
        if self._is_plain:
            whole = self._text_of(token_id)
            if whole is not None:
                return whole
        text = self._without_first_space(self._utf8.decode(self._bytes_of(token_id)))
        self._is_plain = not self._drops_space and not self._utf8.getstate()[0]
        return text

    def flush(self) -> str:
        return self._without_first_space(self._utf8.decode(b"", final=True))

    def _without_first_space(self, text: str) -> str:
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text


class _WindowDecoder:
    """Decodes a window again with each token, and publishes what came to it.

    Text that ends in U+FFFD may be half a character and waits for the tokens that a character can
    have, not longer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tail: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(tail)
        self._num_published = len(self._ids)

    def push(self, token_id: int) -> str:
        self._ids.append(token_id)
        text = self._pending()
        num_waiting = len(self._ids) - self._num_published
        if text.endswith(_REPLACEMENT) and num_waiting < _MAX_TOKENS_PER_CHARACTER:
            return ""
        self._publish()
        return text

    def flush(self) -> str:
        text = self._pending()
        self._publish()
        return text

    def _pending(self) -> str:
        before = self._decode(self._ids[: self._num_published])
        return self._decode(self._ids)[len(before) :]

    def _publish(self) -> None:
        self._ids = self._ids[-WINDOW_CONTEXT:]
        self._num_published = len(self._ids)

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text


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
