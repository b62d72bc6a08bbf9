"""Chunks of a text completion, token by token."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.gateway.wire.chunk_head import ChunkFrame, finish_part
from tokenbus.producer.gateway.wire.logprob_forms import NO_TEXTS, completion_logprobs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenbus.engine.chat.delta import MessageDelta
    from tokenbus.producer.gateway.wire.finished import ChoiceEnd


class CompletionChunks:
    """Writes the chunks of one stream; choices are counted over all prompts."""

    __slots__ = ("_frame", "_with_logprobs")

    def __init__(self, *, with_logprobs: bool = False, **common: Any) -> None:
        self._frame = ChunkFrame(kind="text_completion", **common)
        self._with_logprobs = with_logprobs

    def token(
        self,
        choice: int,
        delta: MessageDelta,
        piece: str,
        num_tokens: int,
        token_id: int = 0,
        entry: Any = None,
        offset: int = 0,
        texts: Mapping[int, str] = NO_TEXTS,
    ) -> str | None:
        """Return the chunk of a token, None for one that says nothing."""
        del delta  # a completion is text
        if self._with_logprobs:
            columns = completion_logprobs([entry], [token_id], [piece], offset, texts)
            logprobs = to_json(columns).decode()
        elif not piece:
            return None
        else:
            logprobs = "null"
        return self._frame.chunk(
            f'{{"index":{choice},"text":{quoted(piece)},"logprobs":{logprobs},'
            '"finish_reason":null}',
            num_tokens,
        )

    def around(self, choice: int) -> tuple[str, str] | None:
        """Return what stands around the text in each chunk; None where there is more to tell."""
        if self._with_logprobs:
            return None
        before = f'{{"index":{choice},"text":'
        return self._frame.around(before, ',"logprobs":null,"finish_reason":null}')

    def tail(self, choice: int, delta: MessageDelta, num_tokens: int) -> str:
        """Return nothing: of a text nothing is held back."""
        del choice, delta, num_tokens
        return ""

    def end(self, choice: int, ending: ChoiceEnd, num_tokens: int) -> str:
        """Return the last chunk of a choice."""
        return self._frame.chunk(
            f'{{"index":{choice},"text":"","logprobs":null,{finish_part(ending)}}}', num_tokens
        )

    def count_prompt(self, num_tokens: int) -> None:
        """Count a prompt in the usage that is told with every chunk from now on."""
        self._frame.prompt_tokens += num_tokens

    def usage(self, usage: Any) -> str:
        """Return the chunk of the usage."""
        return self._frame.usage(usage)
