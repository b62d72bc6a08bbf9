"""Answers of the offline API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenbus.engine.types import FinishReason

if TYPE_CHECKING:
    from tokenbus.engine.errors import EngineError
    from tokenbus.engine.grammar.tool_reader import WrittenToolCall
    from tokenbus.engine.types import TokenLogprobs


@dataclass(slots=True)
class Completion:
    """One choice of one prompt.

    `stop_reason` is the stop string or stop id that ended it, None for the model's own end or for
    length. `logprobs` has one entry per token if they were asked for, those that a grammar forced
    among them. `tool_calls` are read from the text, which holds them as the model wrote them.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    tool_calls: tuple[WrittenToolCall, ...] = ()


@dataclass(slots=True)
class Output:
    """What became of one prompt; the plain attributes are those of its first choice.

    `error` is what a call with this prompt alone would have raised: the refusal of the request, or
    why it failed on the way. Choices that had not ended by then have the finish reason `failed` and
    what they had. `sampling` has the numbers that the checkpoint's generation config put in place
    of ours, where the request gave none.
    """

    prompt_ids: tuple[int, ...]
    choices: list[Completion]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    num_cached_tokens: int = 0
    error: EngineError | None = None
    sampling: dict[str, float] = field(default_factory=dict)

    def fail(self, error: EngineError) -> None:
        """Note why the request failed, if nothing has yet, and end its open choices."""
        self.error = self.error or error
        for choice in self.choices:
            choice.finish_reason = choice.finish_reason or FinishReason.FAILED

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    @property
    def token_ids(self) -> list[int]:
        """Token ids of the first choice."""
        return self.choices[0].token_ids

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the first choice ended: stop, length or failed."""
        return self.choices[0].finish_reason

    @property
    def tool_calls(self) -> tuple[WrittenToolCall, ...]:
        """Tool calls of the first choice."""
        return self.choices[0].tool_calls

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Log-probabilities of the first choice."""
        return self.choices[0].logprobs
