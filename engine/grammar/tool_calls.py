"""Tool calls: constrain the output to calls of given tools.

The way a model writes a call is its chat format. The grammar spells the marks of that format, its
added tokens by their ids, and takes the arguments from the tool's schema, so every call that is
read back names a given tool and has arguments that satisfy its schema. What the model may write
besides stays possible: text before calls, tokens that open its reasoning, white space.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import SPACE, SPACE_RULE, quoted, sequence
from tokenbus.engine.grammar.calls.call_rules import MAX_CALLS, CallRules
from tokenbus.engine.grammar.calls.channel_rules import ChannelRules
from tokenbus.engine.grammar.calls.free_text import FreeText
from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule, before_answer
from tokenbus.engine.grammar.calls.value_rules import json_value
from tokenbus.engine.grammar.tool_reader import ToolReader
from tokenbus.engine.grammar.tools import arguments_schema
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
    from tokenbus.engine.grammar.tools import FunctionTool

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PLAIN = ReasoningRule()


class ToolChoice(StrEnum):
    """How free the model is to call."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class ToolCalling:
    """The tools of one request, for one model."""

    def __init__(
        self, tools: Sequence[FunctionTool], chat_format: ChatFormat, tokens: AddedTokens
    ) -> None:
        """Check the tools.

        Raises: RequestRejected for the field `tools`: none, a bad or double name, or a schema that
            would not be enforced; or a format without calls.
        """
        if not tools:
            raise RequestRejected("tools", "at least one tool is needed")
        if chat_format.calls is None:
            raise RequestRejected("tools", f"the chat format {chat_format.name} has no calls")
        self._tools = tuple(tools)
        self._schemas: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            if not _NAME.fullmatch(tool.name):
                raise RequestRejected("tools", f"name {tool.name!r} does not match {_NAME.pattern}")
            if tool.name in self._schemas:
                raise RequestRejected("tools", f"{tool.name} is given twice")
            self._schemas[tool.name] = arguments_schema(tool)
        self.format = chat_format
        self._written: CallFormat = chat_format.calls
        self._tokens = tokens

    def grammar(
        self,
        choice: ToolChoice | str = ToolChoice.AUTO,
        parallel: bool = True,
        reasoning: ReasoningRule = _PLAIN,
    ) -> GrammarSpec:
        """Return the constraint: text or calls, calls alone, or calls of the one tool named.

        Args:
            parallel: several calls may be written, if the format has that.
            reasoning: how the answer to this prompt begins; calls stand behind the reasoning.
        Raises: RequestRejected for the field `tool_choice` if it names no given tool, and for
            `tools` if an argument cannot be held to its schema in this format.
        """
        schemas = self._schemas
        if choice not in (ToolChoice.AUTO, ToolChoice.REQUIRED):
            if choice not in schemas:
                raise RequestRejected("tool_choice", f"{choice} is not among the tools")
            schemas = {choice: schemas[choice]}
        is_free = choice == ToolChoice.AUTO
        if self.format.has_channels:
            lines = self._channels(schemas, reasoning, is_free=is_free)
            before = ""
        else:
            lines = self._marked(schemas, reasoning, parallel=parallel, is_free=is_free)
            before = before_answer(self.format, self._tokens, reasoning)
        source = "\n".join(["%llguidance {}", *lines, SPACE_RULE]) + "\n"
        return GrammarSpec(GrammarKind.LARK, source, before)

    def reader(self) -> ToolReader:
        """Return what reads the calls back from an output."""
        opening = (self._written.section_open or self._written.call_open).strip()
        hidden = opening if self._tokens.is_special(opening) else ""
        schemas = {tool.name: dict(tool.parameters) for tool in self._tools}
        return ToolReader(self.format.name, schemas, hidden)

    def instructions(self) -> str:
        """Describe tools and format, for the prompt of a template without tools."""
        listed = "\n".join(
            json.dumps(
                {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": dict(tool.parameters),
                },
                ensure_ascii=False,
            )
            for tool in self._tools
        )
        example = self.format.write_calls([WrittenCall("", "<name>", '{"<argument>": "<value>"}')])
        return f"You may call these functions:\n{listed}\nTo call one, write\n{example}"

    def _channels(
        self, schemas: Mapping[str, Any], reasoning: ReasoningRule, *, is_free: bool
    ) -> list[str]:
        """Return the rules of an answer in channels."""
        channels = ChannelRules(self._tokens, reasoning.max_tokens)
        start = channels.free_start() if is_free else channels.required_start()
        calls = [
            rule
            for idx, (name, schema) in enumerate(schemas.items())
            for rule in channels.call(idx, name, json_value(schema))
        ]
        names = " | ".join(f"call_{idx}" for idx in range(len(schemas)))
        return [*start, f"call: {names}", *calls, *channels.shared()]

    def _marked(
        self,
        schemas: Mapping[str, Any],
        reasoning: ReasoningRule,
        *,
        parallel: bool,
        is_free: bool,
    ) -> list[str]:
        """Return the rules of an answer whose calls stand between marks, or begin it."""
        written = self._written
        most = MAX_CALLS if parallel and written.is_parallel else 1
        ways = [
            CallRules(each, schemas, self._tokens, f"f{idx}")
            for idx, each in enumerate((written, *written.also_read))
        ]
        rules = [rule for way in ways for rule in way.rules()]
        if not is_free:
            starts = [way.start(most, is_open=written.opens_in_prompt) for way in ways]
            return [f"start: {SPACE}? ({' | '.join(starts)})", *rules]
        return [*self._free_start(ways, reasoning, most), *rules]

    def _free_start(
        self,
        ways: Sequence[CallRules],
        reasoning: ReasoningRule,
        most: int,
    ) -> list[str]:
        """Return the rules of an output that may be text, calls, or text before calls."""
        written = self._written
        marks = [way.opening for way in ways if way.opening.strip()]
        thought = self.format.reasoning
        barred = () if thought is None or reasoning.is_allowed else thought.opens
        free = FreeText(self._tokens, [self._first_mark(mark) for mark in marks], barred)
        bare = [way for way in ways if not way.opening.strip()]
        heads = [pattern for way in bare for pattern in way.head_patterns()]
        lines = free.rules("free", "|".join(heads))
        lines += [rule for way in bare for rule in way.heads()]
        starts = ["free"]
        head = ""
        if written.opens_in_prompt:
            head = f"{quoted(written.content_name)} {SPACE}? "
            starts = [f"{head}free", ways[0].start(most, is_open=True)]
        for idx, way in enumerate(ways):
            if not way.opening.strip():
                starts.append(way.bare_start(most))
                continue
            before, more = free.up_to("free", self._first_mark(way.opening), f"before_{idx}")
            rest = way.start(most, is_open=True)
            spelled = self._tokens.spelled(self._rest(way.opening))
            starts.append(sequence((f"{head}{before}", spelled, rest, f"{SPACE}?")))
            lines += more
        return [f"start: {' | '.join(starts)}", *lines]

    def _first_mark(self, opening: str) -> str:
        """Return what of an opening tells that calls follow: its first token, or its text."""
        first = self._tokens.first_in(opening)
        return first if first is not None and opening.startswith(first) else opening.strip()

    def _rest(self, opening: str) -> str:
        return opening.lstrip().removeprefix(self._first_mark(opening))
