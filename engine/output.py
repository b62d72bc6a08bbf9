"""Answers of the offline API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenbus.engine.grammar.tool_reader import WrittenToolCall
    from tokenbus.engine.types import FinishReason, TokenLogprobs


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
    """What became of one prompt; the plain attributes are those of its first choice."""

    prompt_ids: tuple[int, ...]
    choices: list[Completion]
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    num_cached_tokens: int = 0

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
        """Why the first choice ended: stop or length."""
        return self.choices[0].finish_reason

    @property
    def tool_calls(self) -> tuple[WrittenToolCall, ...]:
        """Tool calls of the first choice."""
        return self.choices[0].tool_calls

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Log-probabilities of the first choice."""
        return self.choices[0].logprobs
