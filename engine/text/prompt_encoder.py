"""The prompt encoder: texts to token ids, many with one call.

The ids are those that `encode` of the tokenizer gives for each text alone, with one exception: a
begin-of-text token that stands in the text already is not added again. Where the tokenizer is of
transformers' own class, its Rust tokenizer is asked directly: it keeps no positions in the
text, which nobody reads, and lets other threads run meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.model_folder import is_panic

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase


class PromptEncoder:
    """Encodes prompts with one tokenizer; safe to call from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend = _backend_of(tokenizer)
        self._first_id = _first_id_of(tokenizer)

    def encode(self, texts: Sequence[str], *, special: bool) -> list[list[int] | Exception]:
        """Return the ids of each text, or what encoding it alone has raised.

        With `special` the tokens are added with which the tokenizer begins and ends a text.
        """
        try:
            return self._encoded(texts, special=special)
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            if len(texts) == 1:
                return [_as_exception(error)]
        return [found for text in texts for found in self.encode([text], special=special)]

    def _encoded(self, texts: Sequence[str], *, special: bool) -> list[list[int] | Exception]:
        encoded = self._ids(texts, special=special)
        first = self._first_id
        if not special or first is None:
            return [*encoded]
        return [ids[1:] if ids[:2] == [first, first] else ids for ids in encoded]

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if self._backend is None:
            tokenizer = self._tokenizer
            return [tokenizer.encode(text, add_special_tokens=special) for text in texts]
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=special)
        return [encoding.ids for encoding in encoded]


def _as_exception(error: BaseException) -> Exception:
    """Return an error that ends its own text alone: a panic passes every guard for errors."""
    if isinstance(error, Exception):
        return error
    said = " ".join(str(error).split())
    return RuntimeError(f"the tokenizer failed: {said}")


def _first_id_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the id that the tokenizer puts before every text, None if it puts none."""
    bos_id: int | None = getattr(tokenizer, "bos_token_id", None)
    if bos_id is None:
        return None
    return bos_id if tokenizer.encode("", add_special_tokens=True)[:1] == [bos_id] else None


def _backend_of(tokenizer: PreTrainedTokenizerBase) -> Tokenizer | None:
    """Return the Rust tokenizer, set as `encode` sets it; None where `encode` does more."""
    from transformers import PreTrainedTokenizerFast

    kind, plain = type(tokenizer), PreTrainedTokenizerFast
    if not isinstance(tokenizer, plain):
        return None
    if kind.encode is not plain.encode or kind._encode_plus is not plain._encode_plus:
        return None
    backend: Tokenizer = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = tokenizer.split_special_tokens
    return backend
