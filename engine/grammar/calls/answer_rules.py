"""Grammar of a whole answer with tools: calls, and what may stand before or in place of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_format import CallSyntax
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import SPACE, SPACE_RULE, quoted, sequence
from tokenbus.engine.grammar.calls.call_rules import CallRules
from tokenbus.engine.grammar.calls.call_spelling import CallSpelling
from tokenbus.engine.grammar.calls.channel_rules import ChannelRules
from tokenbus.engine.grammar.calls.content_rules import ContentRules
from tokenbus.engine.grammar.calls.free_text import FreeText
from tokenbus.engine.grammar.calls.reasoning_rules import (
    before_answer,
    closing_calls,
    unclosed_thought,
)
from tokenbus.engine.grammar.calls.value_rules import json_value
from tokenbus.engine.grammar.calls.watched_calls import (
    follows_lists,
    may_repeat,
    watched_calls,
    watched_content,
)
from tokenbus.engine.grammar.watching.list_places import has_marks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
    from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule
    from tokenbus.engine.grammar.calls.value_rules import Schema
    from tokenbus.engine.types import GrammarSpec


class AnswerRules:
    """The rules of one answer.

    source: its grammar. before: that of what stands before it. watched: where keys are watched.
    """

    def __init__(
        self,
        chat_format: ChatFormat,
        written: CallFormat,
        schemas: Mapping[str, Schema],
        tokens: AddedTokens,
        reasoning: ReasoningRule,
        *,
        max_calls: int,
        is_free: bool,
        is_exact: bool,
        content: GrammarSpec | None,
    ) -> None:
        """Write the rules.

        Args:
            written: the calls of the format, with the white space of the model's template, for the
                one spelling.
            schemas: of the arguments, by the names of the tools that may be called.
            is_free: the model need not call.
            is_exact: there is one spelling of calls, that of the format; otherwise all that readers
                take.
            content: what an answer satisfies that is no call; None is any text.
        Raises: as `ToolCalling.grammar`.
        """
        assert chat_format.calls is not None
        self._format = chat_format
        self._written: CallFormat = written if is_exact else chat_format.calls
        has_lists = any(map(has_marks, schemas.values()))
        if has_lists:
            self._written = _followed(self._written)
        self._schemas = schemas
        self._tokens = tokens
        self._max_calls = max_calls
        self._is_free, self._is_exact = is_free, is_exact
        ways = self._every_way()
        self._barred = [self._first_mark(way.opening) for way in ways if way.opening.strip()]
        ways = [way for way in ways if way is ways[0] or _is_enforced(way, has_lists=has_lists)]
        # What opens as JSON does cannot be told from content; only forms that are read alone do.
        is_apart = content is None
        self._ways = [way for way in ways if is_apart or way is ways[0] or self._has_mark(way)]
        self._marks = [self._first_mark(way.opening) for way in self._ways if way.opening.strip()]
        self._closing_calls = closing_calls(chat_format, tokens, self._barred)
        bare = [way for way in self._ways if not way.opening.strip()]
        self._heads = [pattern for way in bare for pattern in way.head_patterns()]
        self._content = None if content is None else self._content_rules(content)
        self.before, lines = self._lines(reasoning)
        self.source = "\n".join(["%llguidance {}", *lines, SPACE_RULE]) + "\n"
        self.watched = self._watched(reasoning)

    def _every_way(self) -> list[CallRules]:
        """Return the rules of calls in each form that they may have."""
        formats = (self._written, *(() if self._is_exact else self._written.also_read))
        return [
            CallRules(
                each,
                self._schemas,
                CallSpelling(self._tokens, is_exact=self._is_exact),
                f"f{idx}",
            )
            for idx, each in enumerate(formats)
        ]

    def _content_rules(self, content: GrammarSpec) -> ContentRules:
        """Return the rules of content that is no call."""
        names = {
            way.name_key: list(self._schemas)
            for way in self._ways
            if way.syntax is CallSyntax.JSON_CALL
            if not way.opening.strip() and not self._written.opens_in_prompt
        }
        return ContentRules(content, self._marks, self._heads, names)

    def _lines(self, reasoning: ReasoningRule) -> tuple[str, list[str]]:
        """Return the rules of what stands before the answer, and those of the answer."""
        content = [] if self._content is None else self._content.lines
        if self._format.has_channels:
            return "", [*self._channels(reasoning), *content]
        rules = [rule for way in self._ways for rule in way.rules()]
        closing = self._closing_calls
        before = before_answer(self._format, self._tokens, reasoning, closing)
        thought = unclosed_thought(self._format, self._tokens, reasoning)
        lines = self._marked(reasoning)
        if closing and thought is not None:
            lines = [*self._closed_by_calls(thought, lines), before.removesuffix(SPACE_RULE)]
            before = ""
        return before, [*lines, *rules, *content]

    def _closed_by_calls(self, thought: str, lines: Sequence[str]) -> Iterator[str]:
        """Yield the start of an answer of which calls may close the thought, or its mark."""
        answer = lines[0].removeprefix("start: ")
        yield f"start: before answer | {thought} called"
        yield f"answer: {answer}"
        calls = [way.start(self._max_calls) for way in self._ways if way.opening.strip()]
        end = self._free_end if self._is_free else self._frame_end
        either = f"({' | '.join(calls)})"
        yield f"called: {sequence((either, end))}"
        yield from lines[1:]

    def _watched(self, reasoning: ReasoningRule) -> str:
        """Return where keys or items may repeat, or marks may stand in JSON; "" for nowhere."""
        content = None if self._content is None else self._content.schema
        has_json = content is not None
        if not has_json and not may_repeat(self._schemas.values()):
            return ""
        answer = watched_content(self._format, reasoning, is_json=has_json)
        json_heads = [
            pattern
            for way in self._ways
            if not way.opening.strip() and way.syntax is CallSyntax.JSON_CALL
            for pattern in way.head_patterns()
        ]
        return watched_calls(
            answer, self._written, self._schemas, self._marks, json_heads, self._barred, content
        ).dump()

    def _channels(self, reasoning: ReasoningRule) -> list[str]:
        """Return the rules of an answer in channels."""
        channels = ChannelRules(self._tokens, reasoning.max_tokens)
        if not self._is_free:
            start = channels.required_start()
        elif self._content is None:
            start = channels.free_start()
        else:
            start = channels.content_start()
        calls: list[str] = []
        for idx, (name, schema) in enumerate(self._schemas.items()):
            if not self._is_exact:
                calls += channels.call(idx, name, json_value(schema))
            else:
                head = self._written.head(name)
                calls.append(channels.one_call(idx, head, json_value(schema, is_exact=True)))
        names = " | ".join(f"call_{idx}" for idx in range(len(self._schemas)))
        return [*start, f"call: {names}", *calls, *channels.shared()]

    def _marked(self, reasoning: ReasoningRule) -> list[str]:
        """Return the start of an answer whose calls stand between marks, or begin it."""
        if not self._is_free:
            is_open, space = self._written.opens_in_prompt, "" if self._is_exact else f"{SPACE}?"
            starts = [way.start(self._max_calls, is_open=is_open) for way in self._ways]
            either = f"({' | '.join(starts)})"
            return [f"start: {sequence((space, either, self._frame_end))}"]
        return self._free_start(reasoning) if self._content is None else self._content_start()

    def _content_start(self) -> list[str]:
        """Return the start of an answer that is content by its constraint, or calls."""
        written = self._written
        starts = [sequence(("content", self._frame_end))]
        if written.opens_in_prompt:
            starts = [f"{quoted(written.content_name)} {SPACE}? content"]
        for way in self._ways:
            start = way.start(self._max_calls, is_open=written.opens_in_prompt)
            starts.append(sequence((f"{SPACE}?", start, self._free_end)))
        return [f"start: {' | '.join(starts)}"]

    def _free_start(self, reasoning: ReasoningRule) -> list[str]:
        """Return the start of an answer that may be text, calls, or text before calls."""
        written, most = self._written, self._max_calls
        thought = self._format.reasoning
        barred = () if thought is None or reasoning.is_allowed else thought.opens
        free = FreeText(self._tokens, self._barred, barred)
        bare = [way for way in self._ways if not way.opening.strip()]
        lines = free.rules("free", "|".join(self._heads))
        lines += [rule for way in bare for rule in way.heads()]
        starts = ["free"]
        head = ""
        if written.opens_in_prompt:
            head = f"{quoted(written.content_name)} {SPACE}? "
            starts = [f"{head}free", self._ways[0].start(most, is_open=True)]
        for idx, way in enumerate(self._ways):
            if not way.opening.strip():
                starts.append(way.bare_start(most))
                continue
            before, more = free.up_to("free", self._first_mark(way.opening), f"before_{idx}")
            rest = way.start(most, is_open=True)
            spelled = self._tokens.spelled(self._rest(way.opening))
            starts.append(sequence((f"{head}{before}", spelled, rest, self._free_end)))
            lines += more
        return [f"start: {' | '.join(starts)}", *lines]

    @property
    def _frame_end(self) -> str:
        """Spell what may close the frame of an answer, as the format writes it."""
        thought = self._format.reasoning
        closing = "" if thought is None else self._tokens.exact(thought.frame_close)
        return f"({closing})?" if closing else ""

    @property
    def _free_end(self) -> str:
        """Spell what may stand behind the last call where white space may differ."""
        thought = self._format.reasoning
        closing = "" if thought is None else self._tokens.spelled(thought.frame_close)
        return f"({closing} {SPACE}? | {SPACE})?" if closing else f"{SPACE}?"

    def _has_mark(self, way: CallRules) -> bool:
        """Tell whether calls begin otherwise than JSON does, or are JSON as a whole."""
        opening = way.opening.strip()
        return not opening or opening[0] not in "{[" or self._tokens.first_in(opening) is not None

    def _first_mark(self, opening: str) -> str:
        """Return what of an opening tells that calls follow: its first token, or its text."""
        return self._tokens.leading(opening) or opening.strip()

    def _rest(self, opening: str) -> str:
        return opening.lstrip().removeprefix(self._first_mark(opening))


def _is_enforced(way: CallRules, *, has_lists: bool) -> bool:
    """Tell whether arguments can be held to their schemas in a form that is read alone."""
    if has_lists and not follows_lists(way.syntax):
        return False
    try:
        return bool(list(way.rules()))
    except RequestRejected:
        return False


def _followed(written: CallFormat) -> CallFormat:
    """Return a format whose lists can be followed by the schema of a tool: its name comes first."""
    return replace(written, name_is_last=False)
