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
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from tokenbus.engine.text.byte_table import ByteTable, ShowingTable, byte_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

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
        shown_ids: Collection[int] = (),
    ) -> None:
        """Start behind the prompt; its last few ids decide on a leading space.

        Special tokens have no text, but for those of `shown_ids`, which are spelled out.
        """
        tail = prompt_tail_ids[-WINDOW_CONTEXT:]
        special = special_texts(tokenizer)
        shown = {token_id: special[token_id] for token_id in shown_ids if token_id in special}
        table = tokenizer if isinstance(tokenizer, ByteTable) else byte_table(tokenizer)
        self._special, self._shown = special, shown
        self._decoder: _TokenText
        if table is not None:
            self._decoder = _ByteDecoder(ShowingTable(table, shown) if shown else table, tail)
        else:
            assert not isinstance(tokenizer, ByteTable)
            self._decoder = _WindowDecoder(tokenizer, tail, shown)
        self.push_one = self._decoder.push

    def push(self, ids: Iterable[int]) -> tuple[str, ...]:
        """Return the text that each token completes; "" for one that ends inside a character."""
        return tuple(self._decoder.push(token_id) for token_id in ids)

    def hidden(self, token_id: int) -> str:
        """Return the spelling of a special token that is not shown, "" for any other token."""
        return "" if token_id in self._shown else self._special.get(token_id, "")

    def flush(self) -> str:
        """End the text: return U+FFFD for a character that never was completed."""
        return self._decoder.flush()


def special_texts(tokenizer: PreTrainedTokenizerBase | ByteTable) -> Mapping[int, str]:
    """Return how the special tokens of a tokenizer are spelled, by id."""
    if isinstance(tokenizer, ByteTable):
        return tokenizer.special_texts
    table = byte_table(tokenizer)
    return _window_special_texts(tokenizer) if table is None else table.special_texts


@lru_cache(maxsize=4)
def _window_special_texts(tokenizer: PreTrainedTokenizerBase) -> Mapping[int, str]:
    added = tokenizer.added_tokens_decoder
    return {token_id: token.content for token_id, token in added.items() if token.special}


class _ByteDecoder:
    """Decodes the byte stream of a choice."""

    def __init__(self, table: ByteTable | ShowingTable, tail: Sequence[int]) -> None:
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

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, tail: Sequence[int], shown: Mapping[int, str]
    ) -> None:
        self._tokenizer = tokenizer
        self._shown = shown
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
        for place, token_id in enumerate(ids if self._shown else ()):
            if token_id in self._shown:
                before, after = self._decode(ids[:place]), self._decode(ids[place + 1 :])
                return before + self._shown[token_id] + after
        text = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        assert isinstance(text, str)
        return text
