"""Logprobs in the two shapes of OpenAI's API: a list of tokens in chats, columns in completions.

A token's text is what it has released of the answer's text. The text of an alternative is asked of
a worker; where none answers it is told as `token_id:<id>`, as vLLM does where it is asked for ids.
Those of a prompt stand before those of a completion, or beside an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

# What OpenAI's API writes for a token that could not be drawn.
LOWEST = -9999.0
NO_TEXTS: Mapping[int, str] = MappingProxyType({})


def number_of(value: Any) -> float:
    """Return a logprob that JSON has a name for."""
    return float(value) if isinstance(value, int | float) and value > LOWEST else LOWEST


def _named(token_id: int, drawn: int, piece: str, texts: Mapping[int, str]) -> str:
    if token_id == drawn and piece:
        return piece
    return texts.get(token_id) or f"token_id:{token_id}"


def chat_logprob(entry: Any, token_id: int, piece: str, texts: Mapping[int, str]) -> dict[str, Any]:
    """Return the logprob of one token, as chats have it.

    Args:
        entry: `[logprob, rank, [[id, logprob] …]]`; None where it is not known.
        piece: text that the token has released.
        texts: of alternatives, by their ids.
    """
    logprob, alternatives = (entry[0], entry[2]) if entry else (LOWEST, ())
    return {
        "token": piece,
        "logprob": number_of(logprob),
        "bytes": list(piece.encode("utf-8", "replace")),
        "top_logprobs": [
            {
                "token": (told := _named(other, token_id, piece, texts)),
                "logprob": number_of(value),
                "bytes": list(told.encode("utf-8", "replace")),
            }
            for other, value in alternatives
        ],
    }


def completion_logprobs(
    entries: Sequence[Any],
    ids: Sequence[int],
    pieces: Iterable[str],
    offset: int,
    texts: Mapping[int, str],
) -> dict[str, Any]:
    """Return the logprobs of tokens in columns, as completions have them.

    Args:
        offset: where the first token's text begins in the answer, in characters.
    """
    columns: dict[str, Any] = {
        "tokens": [],
        "token_logprobs": [],
        "top_logprobs": [],
        "text_offset": [],
    }
    for entry, token_id, piece in zip(entries, ids, pieces, strict=True):
        logprob, alternatives = (entry[0], entry[2]) if entry else (LOWEST, ())
        columns["tokens"].append(piece)
        columns["token_logprobs"].append(number_of(logprob))
        told = {
            _named(other, token_id, piece, texts): number_of(value) for other, value in alternatives
        }
        if entry:
            # That of the token itself is always told, beside so many others.
            told.setdefault(_named(token_id, token_id, piece, texts), number_of(logprob))
        columns["top_logprobs"].append(told)
        columns["text_offset"].append(offset)
        offset += len(piece)
    return columns


def pieces_of(text: str, ends: Sequence[int]) -> list[str]:
    """Cut the text of a choice into what each token has released."""
    starts = (0, *ends[:-1]) if ends else ()
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


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
