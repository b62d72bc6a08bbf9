"""What an answer tells of its prompt: its text before the answer's own, and its logprobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.gateway.wire.logprob_forms import completion_logprobs, number_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True)
class ToldPrompt:
    """A prompt that is told again.

    ids, pieces: its tokens and their texts, empty where no logprobs are asked for.
    is_repeated: its text stands before that of the answer.
    with_logprobs: its logprobs stand beside the answer.
    """

    text: str
    ids: tuple[int, ...] = ()
    pieces: tuple[str, ...] = ()
    is_repeated: bool = False
    with_logprobs: bool = False

    def logprobs(self, entries: Sequence[Any], texts: Mapping[int, str]) -> list[Any]:
        """Return the logprobs of its tokens as vLLM tells them: by id, null for the first.

        Args:
            entries: as a result has them.
            texts: of alternatives, by their ids.
        """
        told: list[Any] = []
        # Another model may have read it meanwhile: what is told is what both know.
        for entry, token_id, piece in zip(entries, self.ids, self.pieces, strict=False):
            if entry is None:
                told.append(None)
                continue
            logprob, rank, alternatives = entry[:3]
            by_id = {
                str(other): _entry(value, place, texts.get(other))
                for place, (other, value) in enumerate(alternatives, 1)
            }
            told.append(by_id | {str(token_id): _entry(logprob, rank, piece)})
        return told

    def columns(self, entries: Sequence[Any], texts: Mapping[int, str]) -> dict[str, list[Any]]:
        """Return the logprobs of its tokens in columns, as completions have those of answers."""
        missing = (None,) * len(self.ids)
        known = [*entries, *missing][: len(self.ids)]
        told = completion_logprobs(known, self.ids, self.pieces, 0, texts)
        if self.ids:
            # Nothing stands before the first token.
            told["token_logprobs"][0] = told["top_logprobs"][0] = None
        return told


def _entry(logprob: Any, rank: int, text: str | None) -> dict[str, Any]:
    return {"logprob": number_of(logprob), "rank": rank, "decoded_token": text}
