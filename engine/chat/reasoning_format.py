"""Reasoning formats: the marks between which families of models think before they answer."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The marks of a reasoning block, with the white space that the model writes around them.

    The block stands before all content. The reader ignores white space beside the marks.
    opens_in_prompt: the family's templates usually end in `open`; what counts for a job is the end
        of its prompt (`is_open_after`).
    is_closed_by_calls: a call ends the block as `close` does; so where marks are tokens of their
        own, which never stand in a thought.
    other_opens, other_closes: read, never written.
    """

    name: str
    open: str
    close: str
    opens_in_prompt: bool = False
    is_closed_by_calls: bool = False
    other_opens: tuple[str, ...] = ()
    other_closes: tuple[str, ...] = ()

    @property
    def opens(self) -> tuple[str, ...]:
        """Return the opening marks without white space, the written one first."""
        return tuple(mark.strip() for mark in (self.open, *self.other_opens))

    @property
    def closes(self) -> tuple[str, ...]:
        """Return the closing marks without white space, the written one first."""
        return tuple(mark.strip() for mark in (self.close, *self.other_closes))

    def is_open_after(self, prompt: str) -> bool:
        """Tell whether an answer begins inside the block: the prompt ends in `open`."""
        return prompt.rstrip().endswith(self.opens)

    def write(self, reasoning: str) -> str:
        """Write a whole block."""
        return f"{self.open}{reasoning}{self.close}"


_ALL = (
    ReasoningFormat("think", "<think>\n", "\n</think>\n\n"),
    ReasoningFormat("think-in-prompt", "<think>\n", "\n</think>\n\n", opens_in_prompt=True),
    ReasoningFormat("kimi", "<think>", "</think>", is_closed_by_calls=True),
    ReasoningFormat("seed", "<seed:think>", "</seed:think>"),
    ReasoningFormat("command-a", "<|START_THINKING|>", "<|END_THINKING|>", is_closed_by_calls=True),
    ReasoningFormat(
        "granite-3.2",
        "Here is my thought process:\n",
        "\nHere is my response:\n",
        other_opens=("Here's my thought process:",),
        other_closes=("Here's my response:",),
    ),
    ReasoningFormat("mistral", "[THINK]", "[/THINK]"),
    ReasoningFormat("harmony", "<|channel|>analysis<|message|>", "<|end|>"),
)
REASONING_FORMATS: Mapping[str, ReasoningFormat] = MappingProxyType(
    {each.name: each for each in _ALL}
)
