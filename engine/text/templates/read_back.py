"""Answers as a template renders them, cut out of its prompts, and what a format reads in them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.text.templates.template_traits import (
    ANSWER,
    ARGUMENTS,
    PARAMETERS,
    TOOL,
    USER,
    TemplateTraits,
    rendered,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.text.templates.chat_template import ChatTemplate

_A_WORD = str(ARGUMENTS[0]["probe_word"])
_BAR = "|\N{FULLWIDTH VERTICAL LINE}"
# Marks around turns, as almost all families spell them; some have the bar on one side alone.
_ANY_MARK = re.compile(
    rf"<(?:[{_BAR}][^<>{_BAR}\n]{{1,40}}[{_BAR}]?|[^<>{_BAR}\n]{{1,40}}[{_BAR}])>"
)
# Characters of such a mark.
_MAX_MARK = 60


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
        self.prompt = rendered(template, [USER], traits.tools_name)
        turns = [USER, {"role": "assistant", "content": ANSWER}]
        self._plain = rendered(template, turns, traits.tools_name, add_generation_prompt=False)
        self._plain_end = self._plain.rpartition(ANSWER)[2]

    def answer(
        self,
        turns: Sequence[Mapping[str, object]],
        results: Sequence[Mapping[str, object]],
        chosen: ChatFormat,
    ) -> tuple[str, bool]:
        """Return the part of a prompt that the model would have written, and if it begins inside
        a reasoning block; "" where it does not begin as answers to the prompt do.
        """
        name = self._tools_name
        whole = rendered(self._template, [USER, *turns], name, add_generation_prompt=False)
        # Some refuse calls as the last turn, or leave them out of it.
        is_last = _A_WORD in whole
        if not is_last and results:
            whole = rendered(
                self._template, [USER, *turns, *results], name, add_generation_prompt=False
            )
        begins = self._begin(whole, chosen)
        if begins is None:
            return "", False
        answer = self._without_end(whole[begins:], chosen, is_last=is_last)
        thoughts = chosen.reasoning
        is_inside = (
            thoughts is not None
            and (
                thoughts.is_open_after(whole[:begins])
                # Templates leave out the mark that the prompt opens the block by, and close it.
                or (
                    any(mark in self.prompt[begins:] for mark in thoughts.opens)
                    and answer.lstrip().startswith(thoughts.closes)
                )
            )
        )
        return answer, is_inside

    def _begin(self, whole: str, chosen: ChatFormat) -> int | None:
        """Return where the answer begins: where the prompt ends, or what of it no answer repeats.

        That is what the format can tell, or what answers of words do not repeat either. None if the
        prompt goes on in another way: a turn of another kind is no answer to it.
        """
        begins = _fork(self.prompt, whole, chosen.texts)
        marks = [
            *(chosen.reasoning.opens if chosen.reasoning else ()),
            *(chosen.reasoning.closes if chosen.reasoning else ()),
            *chosen.frame,
            *([chosen.calls.call_open] if chosen.calls and chosen.calls.opens_in_prompt else ()),
        ]
        left = self.prompt[begins:]
        for mark in marks:
            left = left.replace(mark, "")
        if not left.strip():
            return begins
        if begins < _fork(self.prompt, self._plain, chosen.texts):
            return None
        head = self._plain[begins:].partition(ANSWER)[0].rstrip()
        return _behind(whole, begins, head)

    def _without_end(self, answer: str, chosen: ChatFormat, *, is_last: bool) -> str:
        """Cut off what ends a turn and belongs to no format.

        A turn of calls may end in a mark of its own, one of them. What stands behind the end as
        well, results for instance, is cut off with it.
        """
        end, stripped = self._plain_end.strip(), answer.rstrip()
        if end and not is_last:
            return answer.partition(end)[0]
        if end and stripped.endswith(end):
            return stripped.removesuffix(end)
        shared = _num_equal(answer[::-1], self._plain_end[::-1])
        at = len(answer) - shared
        at = max((behind for _, behind in _marks_around(answer, chosen.texts, at)), default=at)
        if _ANY_MARK.search(answer, at):
            return answer[:at]
        ends = [each for each in self._ends if stripped.endswith(each)]
        ends += [each[0] for each in _ANY_MARK.finditer(stripped) if each.end() == len(stripped)]
        ends = [each for each in ends if not any(each in text for text in chosen.texts)]
        return stripped[: -len(max(ends, key=len))] if ends else answer


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


def _behind(text: str, begins: int, head: str) -> int | None:
    """Return where a head ends that stands at a place of a text; None if it does not.

    White space may differ: templates leave it behind between their own lines.
    """
    spaced = r"\s*".join(map(re.escape, "".join(head.split())))
    found = re.compile(rf"\s*{spaced}").match(text, begins)
    return found.end() if found else None


def _fork(text: str, other: str, marks: Sequence[str]) -> int:
    """Return where two texts begin to differ, in front of a mark that is cut there in either."""
    at = _num_equal(text, other)
    starts = [begins for each in (text, other) for begins, _ in _marks_around(each, marks, at)]
    return min(starts, default=at)


def _marks_around(text: str, marks: Sequence[str], at: int) -> Iterator[tuple[int, int]]:
    """Yield the ends of marks that a place divides."""
    for mark in {part for each in marks for part in each.split()}:
        begins = text.rfind(mark, 0, at + len(mark) - 1)
        if 0 <= begins < at < begins + len(mark):
            yield begins, begins + len(mark)
    for found in _ANY_MARK.finditer(text, max(0, at - _MAX_MARK), at + _MAX_MARK):
        if found.start() < at < found.end():
            yield found.span()
