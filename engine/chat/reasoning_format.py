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
    frame_open, frame_close: around the answer behind the block, its calls too; never shown.
    """

    name: str
    open: str
    close: str
    opens_in_prompt: bool = False
    is_closed_by_calls: bool = False
    other_opens: tuple[str, ...] = ()
    other_closes: tuple[str, ...] = ()
    frame_open: str = ""
    frame_close: str = ""

    @property
    def opens(self) -> tuple[str, ...]:
        """Return the opening marks without white space, the written one first."""
        return tuple(mark.strip() for mark in (self.open, *self.other_opens))

    @property
    def closes(self) -> tuple[str, ...]:
        """Return the closing marks without white space, the written one first."""
        return tuple(mark.strip() for mark in (self.close, *self.other_closes))

    @property
    def frame(self) -> tuple[str, ...]:
        """Return the marks around the answer without white space, those that there are."""
        return tuple(filter(None, (self.frame_open.strip(), self.frame_close.strip())))

    def is_open_after(self, prompt: str) -> bool:
        """Tell whether an answer begins inside the block: the prompt ends in `open`."""
        return prompt.rstrip().endswith(self.opens)

    def write(self, reasoning: str) -> str:
        """Write a whole block."""
        return f"{self.open}{reasoning}{self.close}"


_THINK_OPEN, _THINK_CLOSE = "<think>\n", "\n</think>\n\n"
_APRIEL = ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n")

_ALL = (
    ReasoningFormat("think", _THINK_OPEN, _THINK_CLOSE),
    ReasoningFormat("think-in-prompt", _THINK_OPEN, _THINK_CLOSE, opens_in_prompt=True),
    ReasoningFormat(
        "think-answer",
        _THINK_OPEN,
        _THINK_CLOSE,
        frame_open="<answer>\n",
        frame_close="\n</answer>",
    ),
    ReasoningFormat(
        "think-response",
        _THINK_OPEN,
        _THINK_CLOSE,
        frame_open="<response>\n",
        frame_close="\n</response>",
    ),
    ReasoningFormat("thinking", "<thinking>\n", "\n</thinking>\n\n"),
    ReasoningFormat("exaone-deep", "<thought>\n", "\n</thought>\n\n"),
    ReasoningFormat("longcat", "<longcat_think>\n", "\n</longcat_think>\n"),
    ReasoningFormat("hunyuan-3", "<think:opensource>", "</think:opensource>"),
    ReasoningFormat("minimax-m3", "<mm:think>", "</mm:think>"),
    ReasoningFormat("kimi-vl", "◁think▷", "◁/think▷"),
    ReasoningFormat("minicpm-4", "<|thought_start|>\n", "\n<|thought_end|>\n"),
    ReasoningFormat("apertus", "<|inner_prefix|>", "<|inner_suffix|>", is_closed_by_calls=True),
    ReasoningFormat("gemma-4", "<|channel>thought\n", "\n<channel|>"),
    ReasoningFormat("apriel", *_APRIEL, opens_in_prompt=True),
    ReasoningFormat(
        "apriel-1.5", *_APRIEL, opens_in_prompt=True, frame_close="\n[END FINAL RESPONSE]"
    ),
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
