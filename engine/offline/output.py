"""Answers of the offline API."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenbus.engine.chat.usage import Usage
from tokenbus.engine.chat.written_message import WrittenMessage
from tokenbus.engine.types import FinishReason

if TYPE_CHECKING:
    from tokenbus.engine.chat.written_message import WrittenCall
    from tokenbus.engine.errors import EngineError
    from tokenbus.engine.types import TokenLogprobs


@dataclass(slots=True)
class Completion:
    """One choice of one prompt.

    text: as the model wrote it, with the marks of reasoning and calls where `message` is read by
        them.
    finish_reason: `tool_calls` where the model stopped after it had made calls.
    stop_reason: the stop string or stop id that ended it, None for the model's own end or for
        length.
    logprobs: one entry per token if they were asked for, those that a grammar forced among them.
    num_reasoning_tokens: how many of its tokens were reasoning.
    read: what the reader of the chat format found; None where answers are nothing but content.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_reasoning_tokens: int = 0
    read: WrittenMessage | None = None

    @property
    def message(self) -> WrittenMessage:
        """Return its message: content, reasoning and calls, as a job's result has them."""
        return WrittenMessage(self.text) if self.read is None else self.read

    @property
    def content(self) -> str:
        """Return its text without calls and reasoning."""
        return self.message.content

    @property
    def reasoning(self) -> str:
        """Return what the model thought before it answered."""
        return self.message.reasoning

    @property
    def tool_calls(self) -> tuple[WrittenCall, ...]:
        """Return the calls that may be carried out: those that are whole; none if it failed."""
        is_failed = self.finish_reason is FinishReason.FAILED
        return () if is_failed else self.message.complete_calls


@dataclass(slots=True)
class Output:
    """What became of one prompt; the plain attributes are those of its first choice.

    `error` is what a call with this prompt alone would have raised: the refusal of the request, or
    why it failed on the way. Choices that had not ended by then have the finish reason `failed` and
    what they had. `sampling` has the numbers that the checkpoint's generation config put in place
    of our defaults, where the request gave none.
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
        """Why the first choice ended: stop, tool_calls, length or failed."""
        return self.choices[0].finish_reason

    @property
    def message(self) -> WrittenMessage:
        """Message of the first choice."""
        return self.choices[0].message

    @property
    def content(self) -> str:
        """Text of the first choice without calls and reasoning."""
        return self.choices[0].content

    @property
    def reasoning(self) -> str:
        """Reasoning of the first choice."""
        return self.choices[0].reasoning

    @property
    def tool_calls(self) -> tuple[WrittenCall, ...]:
        """Tool calls of the first choice."""
        return self.choices[0].tool_calls

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Log-probabilities of the first choice."""
        return self.choices[0].logprobs

    @property
    def usage(self) -> Usage:
        """Token counts over all choices, as a job's result has them."""
        return Usage(
            len(self.prompt_ids),
            self.num_cached_tokens,
            sum(len(choice.token_ids) for choice in self.choices),
            sum(choice.num_reasoning_tokens for choice in self.choices),
        )
