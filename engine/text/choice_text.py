"""The text of one choice: tokens in, released text per token out, stop strings watched."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

from tokenbus.engine.text.detokenizer import IncrementalDetokenizer, special_texts
from tokenbus.engine.text.stop_strings import StopStrings

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.text.byte_table import ByteTable
    from tokenbus.engine.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Released:
    """The outcome of new tokens: ids that count, text that each releases, stop string met."""

    ids: tuple[int, ...]
    texts: tuple[str, ...]
    stopped_by: str | None = None


class ChoiceText:
    """Detokeniser and stop-string window of one choice; `stopped_by` is what ended it, if so.

    Both depend on the ids alone, so that a choice rebuilt from logged ids releases exactly the text
    that the unbroken one would have.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | ByteTable,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        shown_ids: Collection[int] = (),
    ) -> None:
        """Begin behind the prompt; of special tokens those of `shown_ids` alone have text."""
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids, shown_ids)
        holds_special = partial(_holds_special, tokenizer)
        self._stops = StopStrings(
            params.stop, params.include_stop, params.min_tokens, holds_special
        )
        self._shows_stop_token = params.include_stop
        self.is_plain = not any(params.stop)
        self.stopped_by: str | None = None

    def push_plain(self, token_id: int) -> str:
        """Take one token that does not end the choice, where there is no stop string to watch."""
        return self._detokenizer.push_one(token_id)

    def push_last(self, token_id: int, stop_token_id: int | None) -> str:
        """Take the token that ends the choice, where there is no stop string to watch."""
        text = self._detokenizer.push_one(token_id)
        if stop_token_id is not None and not self._shows_stop_token:
            text = ""
        return text + self._detokenizer.flush()

    def push(
        self, ids: Sequence[int], *, is_last: bool = False, stop_token_id: int | None = None
    ) -> Released:
        """Take new tokens; with `is_last` the text held back goes out with the last of them.

        The text of a token that ended the choice is left out, unless stops are to be included.
        """
        texts = list(self._detokenizer.push(ids))
        hidden = () if self.is_plain else [self._detokenizer.hidden(token_id) for token_id in ids]
        if texts and stop_token_id is not None:
            hidden = hidden[:-1]
            if not self._shows_stop_token:
                texts[-1] = ""
        if texts and is_last:
            texts[-1] += self._detokenizer.flush()
        scan = self._stops.push(texts, hidden)
        self.stopped_by = scan.matched
        released = list(scan.texts)
        if scan.matched is None and is_last and released:
            released[-1] += self._stops.flush()
        return Released(tuple(ids[: len(released)]), tuple(released), scan.matched)

    def flush(self) -> str:
        """End a choice whose end came without a token: return what was held back."""
        scan = self._stops.push([self._detokenizer.flush()])
        self.stopped_by = scan.matched
        return "".join(scan.texts) + ("" if scan.matched else self._stops.flush())


@lru_cache(maxsize=256)
def _holds_special(tokenizer: PreTrainedTokenizerBase | ByteTable, stop: str) -> bool:
    """Tell whether a stop string is a special token, or contains one."""
    return any(text and text in stop for text in special_texts(tokenizer).values())
