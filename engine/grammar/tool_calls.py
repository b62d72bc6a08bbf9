"""Tool calls: constrain the output to calls of given tools.

The way a model writes a call is its chat format. The grammar spells the marks of that format, its
added tokens by their ids, and takes the arguments from the tool's schema, so every call that is
read back names a given tool and has arguments that satisfy its schema. A model that is free to call
may also write text before calls, tokens that open its reasoning, white space, and other forms of
its family. One that has to call gets the one spelling of its format.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.grammar.calls.answer_rules import AnswerRules
from tokenbus.engine.grammar.calls.call_rules import MAX_CALLS
from tokenbus.engine.grammar.calls.call_spelling import MAX_CHARACTERS
from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule
from tokenbus.engine.grammar.calls.watched_calls import follows_lists
from tokenbus.engine.grammar.limits import GrammarLimits
from tokenbus.engine.grammar.schema.refusal import CALL_STEPS, StepBudget
from tokenbus.engine.grammar.tools import arguments_schema, parameters_field
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
    from tokenbus.engine.grammar.tools import FunctionTool

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_PLAIN = ReasoningRule()
# Characters of the schemas of all tools as they are enforced. Twice as many take the grammar
# library longer than the limit of a trial.
_MAX_WRITTEN = 2_000_000


class ToolChoice(StrEnum):
    """How free the model is to call."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class ToolCalling:
    """The tools of one request, for one model."""

    def __init__(
        self,
        tools: Sequence[FunctionTool],
        chat_format: ChatFormat,
        tokens: AddedTokens,
        written: CallFormat | None = None,
        *,
        source_bytes: int = GrammarLimits.source_bytes,
    ) -> None:
        """Check the tools.

        This runs where nothing ends it, so all of it is bounded before it begins.

        Args:
            written: the calls with the white space of the model's template, if that is another.
            source_bytes: of the parameters of all tools together, and of content beside them.
        Raises: RequestRejected for the field `tools`: none, or a format without calls; for a tool
            with a bad or double name, or the schema of one that would not be enforced;
            GrammarRejected for `tools` if their schemas are too much.
        """
        if not tools:
            raise RequestRejected("tools", "at least one tool is needed")
        if chat_format.calls is None:
            raise RequestRejected("tools", f"the chat format {chat_format.name} has no calls")
        self._tools = tuple(tools)
        self._source_bytes = source_bytes
        self._given = sum(len(json.dumps(dict(tool.parameters))) for tool in tools)
        self._check_bytes("tools", self._given)
        budget = StepBudget(CALL_STEPS)
        is_watched = follows_lists(chat_format.calls.syntax)
        self._schemas: dict[str, Mapping[str, Any]] = {}
        num_written = 0
        for idx, tool in enumerate(tools):
            field = f"tools.{idx}.function.name"
            if not _NAME.fullmatch(tool.name):
                raise RequestRejected(field, f"{tool.name!r} does not match {_NAME.pattern}")
            if tool.name in self._schemas:
                raise RequestRejected(field, f"{tool.name} is given twice")
            schema = arguments_schema(tool, parameters_field(idx), budget, is_watched=is_watched)
            self._schemas[tool.name] = schema
            # A format is written a thousand times longer than its name.
            num_written += len(json.dumps(schema))
            if num_written > _MAX_WRITTEN:
                reason = (
                    f"patterns and formats are more than {_MAX_WRITTEN} characters, written out"
                )
                raise GrammarRejected(parameters_field(idx), reason)
        self.format = chat_format
        self._written: CallFormat = written or chat_format.calls
        self._tokens = tokens

    def grammar(
        self,
        choice: ToolChoice | str = ToolChoice.AUTO,
        parallel: bool = True,
        reasoning: ReasoningRule = _PLAIN,
        content: GrammarSpec | None = None,
        *,
        is_exact: bool = True,
    ) -> GrammarSpec:
        """Return the constraint: text or calls, calls alone, or calls of the one tool named.

        Args:
            parallel: several calls may be written, if the format has that.
            reasoning: how the answer to this prompt begins; calls stand behind the reasoning.
            content: what an answer has to satisfy that is no call; where calls are asked for there
                is none.
            is_exact: calls that are asked for have the one spelling of the format; without it all
                spellings and forms that are read.
        Raises: RequestRejected for the field `tool_choice` if it names no given tool, for `tools`
            if an argument cannot be held to its schema in this format, for `grammar` if `content`
            cannot stand beside calls; GrammarRejected for `grammar` if it cannot be enforced.
        """
        schemas = self._schemas
        if choice not in (ToolChoice.AUTO, ToolChoice.REQUIRED):
            if choice not in schemas:
                raise RequestRejected("tool_choice", f"{choice} is not among the tools")
            schemas = {choice: schemas[choice]}
        is_free = choice == ToolChoice.AUTO
        content = content if is_free else None
        given = self._given
        if content is not None:
            given += len(content.source.encode(errors="surrogatepass"))
            self._check_bytes("grammar", given)
        rules = AnswerRules(
            self.format,
            self._written,
            schemas,
            self._tokens,
            reasoning,
            max_calls=MAX_CALLS if parallel and self._written.is_parallel else 1,
            is_free=is_free,
            is_exact=is_exact and not is_free,
            content=content,
        )
        if len(rules.source) > MAX_CHARACTERS:
            reason = f"their arguments are more than {MAX_CHARACTERS} characters, written out"
            raise GrammarRejected("tools", reason)
        return GrammarSpec(GrammarKind.LARK, rules.source, rules.before, rules.watched, given)

    def _check_bytes(self, field: str, given: int) -> None:
        if given > self._source_bytes:
            reason = f"the source has {given} bytes, the limit is {self._source_bytes}"
            raise GrammarRejected(field, reason)

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
