"""The chat format of a template: chosen by what it renders, and proved by reading that back.

A call that the template has rendered is read by the reader of each call format; the first that
gives back the same call is the template's. Where a template renders no calls, the marks of a format
say so: those that the template shows the model beside the tools, else those that are tokens of the
model. Calls are then written as text, and have to be read back all the same.

It is one noun: what is asked of a template follows from what it answered before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_formats import CALL_FORMATS
from tokenbus.engine.chat.chat_format import FORMATS, ChatFormat, chat_format
from tokenbus.engine.chat.reasoning_format import REASONING_FORMATS
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.text.templates.call_proof import may_be_written
from tokenbus.engine.text.templates.read_back import RenderedAnswers, is_read, written_call
from tokenbus.engine.text.templates.reasoning_choice import reasonings_of
from tokenbus.engine.text.templates.respelled_format import respelled
from tokenbus.engine.text.templates.template_traits import (
    ANSWER,
    ARGUMENTS,
    RESULT,
    TOOL,
    USER,
    HistoryShape,
    TemplateTraits,
    probe_calls,
    rendered,
    result_of,
)
from tokenbus.engine.text.templates.told_formats import formats_shown_in, formats_with_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.text.templates.chat_template import ChatTemplate

NONE = "none"
# What models imitate best that were shown no way of writing calls.
_FALLBACK = "hermes"
# Turn marks of families that write calls as they are told, with the way that they were shown.
_BY_TURN_MARK = {"<start_of_turn>": "gemma-3", "<|start_header_id|>": "llama-3"}
_UNREAD = "its chat template writes calls in a way that no known format reads back"
_UNSHOWN = "its chat template renders tools, and does not tell in which known format to call them"


@dataclass(frozen=True, slots=True)
class FormatChoice:
    """A chat format and how earlier calls reach the model.

    shape: that in which the template renders calls; None if they are written as text.
    is_parallel: the template renders several calls of one message.
    has_text_before: it renders text and calls of one message.
    has_words_before: it renders text of a message before that of the calls.
    has_results: it renders messages of the role tool behind calls.
    doubt: why the format was not proved, "" if it was.
    written: the call format with the white space of the template; None where that is not known.
    """

    format: ChatFormat
    shape: HistoryShape | None
    is_parallel: bool
    has_text_before: bool
    has_words_before: bool
    has_results: bool
    doubt: str = ""
    written: CallFormat | None = None


class FormatChooser:
    """Finds the format of one template."""

    def __init__(
        self,
        template: ChatTemplate,
        traits: TemplateTraits,
        added_tokens: Sequence[str],
        eos_token: str = "",
    ) -> None:
        """Prepare the choice.

        Args:
            added_tokens: texts of the tokens that the model has beside its vocabulary.
        """
        self._template = template
        self._traits = traits
        self._added = frozenset(added_tokens)
        self._rendered = RenderedAnswers(template, traits, added_tokens, eos_token)

    def choose(self, calls: str | None = None, reasoning: str | None = None) -> FormatChoice:
        """Choose call format and reasoning format, unless they are named, and prove the choice.

        Raises: RequestRejected for `tool_format` or `reasoning_format` if there is none of the
            name.
        """
        check_format_names(calls, reasoning)
        thoughts = (
            [reasoning] if reasoning else [*reasonings_of(self._template, self._traits), NONE]
        )
        for shape in self._traits.shapes:
            name = self._reading(shape, thoughts, [calls] if calls else CALL_FORMATS)
            if name is not None:
                return self._proved(_paired(name, thoughts), shape)
        if calls == NONE:
            return self._native(chat_format(NONE, thoughts[0]), "")
        name = calls or (self._shown() if self._traits.shapes else self._by_marks())
        if name is None:
            doubt = _UNREAD if self._traits.shapes else _UNSHOWN
            return self._native(chat_format(NONE, thoughts[0]), doubt)
        return self._as_text(_paired(name, thoughts))

    def _reading(
        self, shape: HistoryShape, thoughts: Sequence[str], names: Iterable[str]
    ) -> str | None:
        """Return the format that reads a rendered call, and if it can be writes the same text.

        Its grammar lets that call through as well: a reader takes more than models write.
        """
        found: str | None = None
        for name in names:
            if name == NONE:
                continue
            chosen = _paired(name, thoughts)
            assert chosen.calls is not None
            calls = self._calls(1, chosen.calls)
            results = list(map(result_of, calls))
            answer, is_inside = self._rendered.answer([shape.turn(calls)], results, chosen)
            if not self._may_be_read(chosen.calls, answer):
                continue
            if not is_read(chosen, answer, is_inside, calls):
                continue
            if not may_be_written(chosen, answer, starts_inside=is_inside):
                continue
            if chosen.write_calls([written_call(call) for call in calls]) in answer:
                return name
            found = found or name
        return found

    def _may_be_read(self, written: CallFormat, answer: str) -> bool:
        """Tell whether a mark that opens calls is there, or none is needed."""
        if written.opens_in_prompt:
            return self._rendered.prompt.rstrip().endswith(written.call_open.rstrip())
        formats = (written, *written.also_read)
        openings = [(each.section_open or each.call_open).split() for each in formats]
        return any(not marks or all(mark in answer for mark in marks) for marks in openings)

    def _proved(self, chosen: ChatFormat, shape: HistoryShape) -> FormatChoice:
        is_parallel = self._reads_back(chosen, shape, num_calls=2)
        has_results = self._renders_results(shape)
        if has_results and not self._renders_results(shape, 2):
            is_parallel = False
        return FormatChoice(
            chosen,
            shape,
            is_parallel=is_parallel,
            has_text_before=self._reads_back(chosen, shape, content=ANSWER)
            and self._keeps_later_text(shape),
            has_words_before=self._renders_words_before(shape),
            has_results=has_results,
            written=self._written(chosen, shape, most=2 if is_parallel else 1),
        )

    def _written(self, chosen: ChatFormat, shape: HistoryShape, most: int) -> CallFormat | None:
        """Return the call format as the template spells it."""
        if chosen.calls is None or chosen.has_channels:
            return None
        told = []
        for num_calls in range(1, most + 1):
            calls = self._calls(num_calls, chosen.calls)
            results = list(map(result_of, calls))
            told.append((calls, self._rendered.answer([shape.turn(calls)], results, chosen)[0]))
        return respelled(chosen.calls, told)

    def _native(self, chosen: ChatFormat, doubt: str) -> FormatChoice:
        """Return the choice for calls that nobody reads: as the template renders them, or text."""
        if not self._traits.shapes:
            return self._in_text(chosen, doubt)
        shape = self._traits.shapes[0]
        name = self._traits.tools_name
        two, both = (
            rendered(
                self._template, [USER, shape.turn(calls, content), *map(result_of, calls)], name
            )
            for calls, content in ((self._calls(2), ""), (self._calls(1), ANSWER))
        )
        first, last = (str(arguments["probe_word"]) for arguments in ARGUMENTS)
        return FormatChoice(
            chosen,
            shape,
            is_parallel=first in two and last in two,
            has_text_before=first in both and ANSWER in both and self._keeps_later_text(shape),
            has_words_before=self._renders_words_before(shape),
            has_results=self._renders_results(shape),
            doubt=doubt,
        )

    def _as_text(self, chosen: ChatFormat) -> FormatChoice:
        """Return the choice for calls that stand in the text of their message."""
        doubt = ""
        if chosen.calls is not None:
            calls = self._calls(1)
            written = chosen.write_calls([written_call(call) for call in calls])
            turn = {"role": "assistant", "content": written}
            answer, is_inside = self._rendered.answer([turn], (), chosen)
            if not is_read(chosen, answer, is_inside, calls):
                doubt = f"a call written as {chosen.calls.name} is not read back from its prompts"
        return self._in_text(chosen, doubt)

    def _in_text(self, chosen: ChatFormat, doubt: str) -> FormatChoice:
        return FormatChoice(
            chosen,
            None,
            is_parallel=True,
            has_text_before=True,
            has_words_before=True,
            has_results=self._renders_results(None),
            doubt=doubt,
        )

    def _reads_back(
        self, chosen: ChatFormat, shape: HistoryShape, num_calls: int = 1, content: str = ""
    ) -> bool:
        """Tell whether the format reads the calls that the template renders."""
        calls = self._calls(num_calls, chosen.calls)
        turn, results = shape.turn(calls, content), list(map(result_of, calls))
        answer, is_inside = self._rendered.answer([turn], results, chosen)
        return is_read(chosen, answer, is_inside, calls, content)

    def _renders_words_before(self, shape: HistoryShape) -> bool:
        """Tell whether an assistant's words and its calls may be two messages in a row."""
        [call] = self._calls(1)
        turns = [USER, {"role": "assistant", "content": ANSWER}, shape.turn([call])]
        text = rendered(self._template, [*turns, result_of(call)], self._traits.tools_name)
        return ANSWER in text and str(ARGUMENTS[0]["probe_word"]) in text

    def _keeps_later_text(self, shape: HistoryShape) -> bool:
        """Tell whether text beside calls stays in a later turn, where some templates forget it."""
        first, second = self._calls(2)
        turns = [USER, shape.turn([first]), result_of(first), shape.turn([second], ANSWER)]
        text = rendered(self._template, [*turns, result_of(second)], self._traits.tools_name)
        return ANSWER in text or not text

    def _renders_results(self, shape: HistoryShape | None, num_calls: int = 1) -> bool:
        """Tell whether results stand behind calls, in front of words where these are all text."""
        words = {"role": "assistant", "content": ANSWER}
        calls = self._calls(num_calls)
        turns = [shape.turn(calls)] if shape else [words]
        turns += [*map(result_of, calls), *([] if shape else [words])]
        told = rendered(self._template, [USER, *turns], self._traits.tools_name)
        return told.count(RESULT) >= num_calls

    def _calls(self, num_calls: int, written: CallFormat | None = None) -> list[dict[str, object]]:
        """Return made-up calls, with the ids that a format gives its own."""
        calls = probe_calls(num_calls, short=self._traits.has_short_ids)
        if written is None or not written.keeps_id:
            return calls
        return [{**call, "id": written.id_of(TOOL, idx)} for idx, call in enumerate(calls)]

    def _shown(self) -> str | None:
        """Return the one call format that the template shows beside the tools, None if none is."""
        found = self._formats_shown()
        return found[0] if len(found) == 1 else None

    def _formats_shown(self) -> list[str]:
        plain = rendered(self._template, [USER])
        prompt = rendered(self._template, [USER], self._traits.tools_name)
        return formats_shown_in(prompt) if prompt != plain else []

    def _by_marks(self) -> str | None:
        """Return the call format whose marks the template shows, or the model has as tokens.

        None if the template renders tools and tells of no format, or of more than one: its model
        was shown another.
        """
        for found in (self._formats_shown(), formats_with_tokens(self._added)):
            if found:
                return found[0] if len(found) == 1 or not self._traits.tools_name else None
        if self._traits.tools_name:
            return None
        plain = rendered(self._template, [USER])
        turn_marks = (name for mark, name in _BY_TURN_MARK.items() if mark in plain)
        return next(turn_marks, _FALLBACK)


def check_format_names(calls: str | None, reasoning: str | None) -> None:
    """Refuse names of formats that there are none of. Raises: RequestRejected with the field."""
    _check_name("tool_format", calls, CALL_FORMATS)
    _check_name("reasoning_format", reasoning, REASONING_FORMATS)


def _paired(calls: str, thoughts: Sequence[str]) -> ChatFormat:
    """Return the format of these calls, with the reasoning that a family has beside them."""
    own = chat_format(calls, NONE)
    fitting = [
        name
        for name in thoughts
        if name != NONE and chat_format(NONE, name).has_channels is own.has_channels
    ]
    names = {each.name for each in FORMATS.values()}
    pairs = [name for name in fitting if f"{calls}/{name}" in names]
    if fitting and chat_format(NONE, fitting[0]).frame:
        pairs = fitting
    return chat_format(calls, next(iter((*pairs, *fitting)), NONE))


def _check_name(field: str, name: str | None, known: Iterable[str]) -> None:
    if name is not None and name != NONE and name not in known:
        raise RequestRejected(field, f"{name} is not among {', '.join((NONE, *known))}")
