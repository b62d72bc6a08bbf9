"""Grammar of a whole answer with tools: calls, and what may stand before or in place of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_format import CallSyntax
from tokenbus.engine.grammar.calls.added_tokens import SPACE, SPACE_RULE, quoted, sequence
from tokenbus.engine.grammar.calls.call_rules import CallRules
from tokenbus.engine.grammar.calls.call_spelling import CallSpelling
from tokenbus.engine.grammar.calls.channel_rules import ChannelRules
from tokenbus.engine.grammar.calls.content_rules import ContentRules
from tokenbus.engine.grammar.calls.free_text import FreeText
from tokenbus.engine.grammar.calls.reasoning_rules import before_answer
from tokenbus.engine.grammar.calls.value_rules import json_value
from tokenbus.engine.grammar.calls.watched_calls import may_repeat, watched_calls, watched_content

if TYPE_CHECKING:
    from collections.abc import Mapping

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
        self._schemas = schemas
        self._tokens = tokens
        self._max_calls = max_calls
        self._is_free, self._is_exact = is_free, is_exact
        spelling = CallSpelling(tokens, is_exact=is_exact)
        formats = (self._written, *(() if is_exact else self._written.also_read))
        ways = [CallRules(each, schemas, spelling, f"f{idx}") for idx, each in enumerate(formats)]
        self._barred = [self._first_mark(way.opening) for way in ways if way.opening.strip()]
        # What opens as JSON does cannot be told from content; only forms that are read alone do.
        is_apart = content is None
        self._ways = [way for way in ways if is_apart or way is ways[0] or self._has_mark(way)]
        self._marks = [self._first_mark(way.opening) for way in self._ways if way.opening.strip()]
        bare = [way for way in self._ways if not way.opening.strip()]
        self._heads = [pattern for way in bare for pattern in way.head_patterns()]
        self._content = None if content is None else self._content_rules(content)
        self.before, lines = self._lines(reasoning)
        self.source = "\n".join(["%llguidance {}", *lines, SPACE_RULE]) + "\n"
        self.watched = self._watched(reasoning)

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
        before = before_answer(self._format, self._tokens, reasoning)
        return before, [*self._marked(reasoning), *rules, *content]

    def _watched(self, reasoning: ReasoningRule) -> str:
        """Return where keys may repeat, or marks may stand in JSON; "" for nowhere."""
        has_json = self._content is not None and self._content.schema is not None
        if not has_json and not may_repeat(self._schemas):
            return ""
        answer = watched_content(self._format, reasoning, is_json=has_json)
        json_heads = [
            pattern
            for way in self._ways
            if not way.opening.strip() and way.syntax is CallSyntax.JSON_CALL
            for pattern in way.head_patterns()
        ]
        return watched_calls(
            answer, self._written, self._schemas, self._marks, json_heads, self._barred
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
            return [f"start: {sequence((space, either))}"]
        return self._free_start(reasoning) if self._content is None else self._content_start()

    def _content_start(self) -> list[str]:
        """Return the start of an answer that is content by its constraint, or calls."""
        written = self._written
        starts = ["content"]
        if written.opens_in_prompt:
            starts = [f"{quoted(written.content_name)} {SPACE}? content"]
        for way in self._ways:
            start = way.start(self._max_calls, is_open=written.opens_in_prompt)
            starts.append(sequence((f"{SPACE}?", start, f"{SPACE}?")))
        return [f"start: {' | '.join(starts)}"]

    def _free_start(self, reasoning: ReasoningRule) -> list[str]:
        """Return the start of an answer that may be text, calls, or text before calls."""
        written, most = self._written, self._max_calls
        thought = self._format.reasoning
        barred = () if thought is None or reasoning.is_allowed else thought.opens
        free = FreeText(self._tokens, self._marks, barred)
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
            starts.append(sequence((f"{head}{before}", spelled, rest, f"{SPACE}?")))
            lines += more
        return [f"start: {' | '.join(starts)}", *lines]

    def _has_mark(self, way: CallRules) -> bool:
        """Tell whether calls begin otherwise than JSON does, or are JSON as a whole."""
        opening = way.opening.strip()
        return not opening or opening[0] not in "{[" or self._tokens.first_in(opening) is not None

    def _first_mark(self, opening: str) -> str:
        """Return what of an opening tells that calls follow: its first token, or its text."""
        first = self._tokens.first_in(opening)
        return first if first is not None and opening.startswith(first) else opening.strip()

    def _rest(self, opening: str) -> str:
        return opening.lstrip().removeprefix(self._first_mark(opening))
