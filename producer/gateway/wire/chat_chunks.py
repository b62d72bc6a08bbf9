"""Chunks of a chat completion, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.contract.messages.wire_delta import delta_json
from tokenbus.producer.gateway.wire.chunk_head import ChunkFrame, finish_part
from tokenbus.producer.gateway.wire.logprob_forms import NO_TEXTS, chat_logprob

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenbus.engine.chat.delta import MessageDelta
    from tokenbus.producer.gateway.wire.finished import ChoiceEnd


class ChatChunks:
    """Writes the chunks of one stream; the first one of a choice tells the role.

    A token that adds nothing has no chunk, unless its logprobs were asked for.
    """

    __slots__ = ("_begun", "_frame", "_with_logprobs")

    def __init__(self, *, with_logprobs: bool = False, **common: Any) -> None:
        self._frame = ChunkFrame(kind="chat.completion.chunk", **common)
        self._with_logprobs = with_logprobs
        self._begun: set[int] = set()

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
        del offset  # chats do not tell it
        if self._with_logprobs:
            told = [chat_logprob(entry, token_id, piece, texts)]
            logprob = to_json({"content": told, "refusal": None}).decode()
        elif not delta:
            return None
        else:
            logprob = "null"
        return self._frame.chunk(
            f'{{"index":{choice},"delta":{self._told(choice, delta)},"logprobs":{logprob},'
            '"finish_reason":null}',
            num_tokens,
        )

    def around(self, choice: int) -> tuple[str, str] | None:
        """Return what stands around the content in each chunk that tells nothing else.

        None while, or where, there is more to tell.
        """
        if self._with_logprobs or choice not in self._begun:
            return None
        before = f'{{"index":{choice},"delta":{{"content":'
        return self._frame.around(before, '},"logprobs":null,"finish_reason":null}')

    def tail(self, choice: int, delta: MessageDelta, num_tokens: int) -> str:
        """Return the chunk of what was held back until the end, empty for nothing."""
        if not delta:
            return ""
        return self._frame.chunk(
            f'{{"index":{choice},"delta":{self._told(choice, delta)},"logprobs":null,'
            '"finish_reason":null}',
            num_tokens,
        )

    def end(self, choice: int, ending: ChoiceEnd, num_tokens: int) -> str:
        """Return the last chunk of a choice."""
        told = "{}" if choice in self._begun else '{"role":"assistant","content":""}'
        return self._frame.chunk(
            f'{{"index":{choice},"delta":{told},"logprobs":null,{finish_part(ending)}}}', num_tokens
        )

    def count_prompt(self, num_tokens: int) -> None:
        """Count a prompt in the usage that is told with every chunk from now on."""
        self._frame.prompt_tokens += num_tokens

    def usage(self, usage: Any) -> str:
        """Return the chunk of the usage."""
        return self._frame.usage(usage)

    def _told(self, choice: int, delta: MessageDelta) -> str:
        told = delta_json(delta)
        if choice in self._begun:
            return told
        self._begun.add(choice)
        if told == "{}":
            return '{"role":"assistant","content":""}'
        content = "" if delta.content else '"content":null,'
        return f'{{"role":"assistant",{content}{told[1:]}'
