"""The head of chunks: what all those of one stream have in common."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.gateway.wire.usage import usage_body

if TYPE_CHECKING:
    from tokenbus.producer.gateway.wire.finished import ChoiceEnd


class ChunkFrame:
    """The JSON of chunks around their choices.

    Tokens are counted over all choices of the stream; `prompt_tokens`, in the usage that is told
    with every chunk, over the prompts that have begun to be answered.
    """

    __slots__ = ("_continuous", "_head", "_tail", "prompt_tokens")

    def __init__(
        self,
        *,
        kind: str,
        wire_id: str,
        created: int,
        model: str,
        tier: str = "",
        with_usage: bool = False,
        with_continuous_usage: bool = False,
    ) -> None:
        tier_part = f'"service_tier":{quoted(tier)},' if tier else ""
        self._head = (
            f'{{"id":{quoted(wire_id)},"object":"{kind}","created":{created},'
            f'"model":{quoted(model)},{tier_part}"choices":['
        )
        self.prompt_tokens = 0
        self._continuous = with_continuous_usage
        self._tail = ',"usage":null}' if with_usage else "}"

    def chunk(self, choice: str, num_tokens: int) -> str:
        """Return a chunk with one choice, after so many tokens of the stream."""
        if self._continuous:
            so_far = Usage(self.prompt_tokens, completion_tokens=num_tokens)
            usage = to_json(usage_body(so_far)).decode()
            return f'{self._head}{choice}],"usage":{usage}}}'
        return f"{self._head}{choice}]{self._tail}"

    def around(self, before: str, behind: str) -> tuple[str, str] | None:
        """Return what stands around the text of a choice in all chunks that differ in it alone.

        None where chunks tell the tokens so far, too.
        """
        return None if self._continuous else (f"{self._head}{before}", f"{behind}]{self._tail}")

    def usage(self, usage: Usage) -> str:
        """Return the last chunk, which has no choice."""
        return f'{self._head}],"usage":{to_json(usage_body(usage)).decode()}}}'


def finish_part(ending: ChoiceEnd) -> str:
    """Return how a choice ended, as the last fields of its last chunk."""
    stopped = ending.stop_reason
    extra = "" if stopped is None else f',"stop_reason":{to_json(stopped).decode()}'
    return f'"finish_reason":{quoted(ending.reason)}{extra}'
