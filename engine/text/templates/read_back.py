"""Answers as a template renders them, cut out of its prompts, and what a format reads in them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.text.templates.template_traits import (
    ANSWER,
    PARAMETERS,
    TOOL,
    USER,
    TemplateTraits,
    rendered,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.text.templates.chat_template import ChatTemplate

_BAR = "|\N{FULLWIDTH VERTICAL LINE}"
# Marks around turns, as almost all families spell them.
_ANY_MARK = re.compile(rf"<[{_BAR}][^<>{_BAR}]{{1,40}}[{_BAR}]>")
_LAST_MARK = re.compile(rf"{_ANY_MARK.pattern}\s*$")


class RenderedAnswers:
    """Renders answers to the made-up question and cuts them out of the prompts."""

    def __init__(
        self,
        template: ChatTemplate,
        traits: TemplateTraits,
        added_tokens: Sequence[str],
        eos_token: str,
    ) -> None:
        """Render what all of the prompts begin and end with.

        Args:
            added_tokens: texts of the tokens that the model has beside its vocabulary.
        """
        self._template = template
        self._tools_name = traits.tools_name
        self._ends = tuple(filter(None, (eos_token, *added_tokens)))
        self._prompt = rendered(template, [USER], traits.tools_name)
        turns = [USER, {"role": "assistant", "content": ANSWER}]
        self._plain = rendered(template, turns, traits.tools_name, add_generation_prompt=False)

    def answer(
        self,
        turns: Sequence[Mapping[str, object]],
        results: Sequence[Mapping[str, object]],
        chosen: ChatFormat,
    ) -> tuple[str, bool]:
        """Return the part of a prompt that the model would have written, and if it begins inside
        a reasoning block.
        """
        name = self._tools_name
        whole = rendered(self._template, [USER, *turns], name, add_generation_prompt=False)
        if not whole and results:
            whole = rendered(
                self._template, [USER, *turns, *results], name, add_generation_prompt=False
            )
        begins = _num_equal(self._prompt, whole)
        ends = len(whole) - _num_equal(whole[begins:][::-1], self._plain[::-1])
        begins = _outside_marks(whole, begins, chosen.texts, is_end=False)
        ends = _outside_marks(whole, ends, chosen.texts, is_end=True)
        is_inside = chosen.reasoning is not None and chosen.reasoning.is_open_after(whole[:begins])
        return self._without_end(whole[begins:ends], chosen), is_inside

    def _without_end(self, answer: str, chosen: ChatFormat) -> str:
        """Cut off the marks that end a turn and belong to no format."""
        while True:
            stripped = answer.rstrip()
            ends = [end for end in self._ends if stripped.endswith(end)]
            found = _LAST_MARK.search(stripped)
            if found is not None:
                ends.append(found[0])
            ends = [end for end in ends if not any(end in text for text in chosen.texts)]
            if not ends:
                return answer
            answer = stripped[: -len(max(ends, key=len))]


def written_call(call: Mapping[str, object]) -> WrittenCall:
    """Return a call of a message as a model writes it; arguments may be text or an object."""
    function = call["function"]
    assert isinstance(function, dict)
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    return WrittenCall(str(call.get("id", "")), str(function["name"]), arguments)


def is_read(
    chosen: ChatFormat,
    answer: str,
    is_inside: bool,
    calls: Sequence[Mapping[str, object]],
    content: str = "",
) -> bool:
    """Tell whether the reader finds these calls, and beside them this content alone."""
    reader = MessageReader(chosen, {TOOL: PARAMETERS}, starts_in_reasoning=is_inside, call_id=str)
    reader.push(answer)
    reader.finish()
    message = reader.message
    if len(message.complete_calls) != len(calls) or len(message.calls) != len(calls):
        return False
    expected = [written_call(call) for call in calls]
    return message.content.strip() == content and all(
        found.name == call.name and json.loads(found.arguments) == json.loads(call.arguments)
        for found, call in zip(message.calls, expected, strict=True)
    )


def _num_equal(text: str, other: str) -> int:
    """Count the characters with which both begin."""
    shorter = min(len(text), len(other))
    return next((idx for idx in range(shorter) if text[idx] != other[idx]), shorter)


def _outside_marks(text: str, at: int, marks: Sequence[str], *, is_end: bool) -> int:
    """Move a cut that divides a mark: a mark of the format stays in what is cut out, others not."""
    for mark in marks:
        begins = text.rfind(mark, 0, at + len(mark))
        if 0 <= begins < at < begins + len(mark):
            return begins + len(mark) if is_end else begins
    for found in _ANY_MARK.finditer(text):
        if found.start() < at < found.end():
            return found.start() if is_end else found.end()
    return at
