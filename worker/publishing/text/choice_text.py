"""The text of one choice: tokens in, released text per token out, stop strings watched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.engine.text.detokenizer import IncrementalDetokenizer
from tokenbus.engine.text.stop_strings import StopStrings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.text.detokenizer import ByteTable
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
    ) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids)
        self._stops = StopStrings(params.stop, params.include_stop, params.min_tokens)
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
        if texts and stop_token_id is not None and not self._shows_stop_token:
            texts[-1] = ""
        if texts and is_last:
            texts[-1] += self._detokenizer.flush()
        scan = self._stops.push(texts)
        self.stopped_by = scan.matched
        released = list(scan.texts)
        if scan.matched is None and is_last and released:
            released[-1] += self._stops.flush()
        return Released(tuple(ids[: len(released)]), tuple(released), scan.matched)
