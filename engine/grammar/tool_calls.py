"""Tool calls: constrain the output to calls of given tools.

The way a model writes a call is a property of its chat template. The grammar spells the punctuation
of that way literally and takes the arguments from the tool's schema, so every call that is read
back names a given tool and has arguments that satisfy its schema.
"""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.json_schema import json_options
from tokenbus.engine.grammar.tool_format import detect_tool_format
from tokenbus.engine.grammar.tool_reader import ToolReader
from tokenbus.engine.grammar.tools import arguments_schema, tool_template
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.grammar.tools import FunctionTool

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class ToolChoice(StrEnum):
    """How free the model is to call."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"


class ToolCalling:
    """The tools of one request, for one model."""

    def __init__(self, tools: Sequence[FunctionTool], tokenizer: PreTrainedTokenizerBase) -> None:
        """Check the tools and find out how the model writes calls.

        Raises: RequestRejected for the field `tools`: none, a bad or double name, or a schema that
            would not be enforced.
        """
        if not tools:
            raise RequestRejected("tools", "at least one tool is needed")
        self._tools = tuple(tools)
        self._schemas: dict[str, Mapping[str, Any]] = {}
        for tool in tools:
            if not _NAME.fullmatch(tool.name):
                raise RequestRejected("tools", f"name {tool.name!r} does not match {_NAME.pattern}")
            if tool.name in self._schemas:
                raise RequestRejected("tools", f"{tool.name} is given twice")
            self._schemas[tool.name] = arguments_schema(tool)
        self.format = detect_tool_format(tool_template(tokenizer))
        vocabulary = tokenizer.get_added_vocab()
        self._special_ids = {
            text: vocabulary[text] for text in tokenizer.all_special_tokens if text in vocabulary
        }

    def grammar(
        self, choice: ToolChoice | str = ToolChoice.AUTO, parallel: bool = True
    ) -> GrammarSpec:
        """Return the constraint: text or calls, calls alone, or calls of the one tool named.

        Raises: RequestRejected for the field `tool_choice` if it names no given tool.
        """
        names = list(self._schemas)
        if choice not in (ToolChoice.AUTO, ToolChoice.REQUIRED):
            if choice not in self._schemas:
                raise RequestRejected("tool_choice", f"{choice} is not among the tools")
            names = [choice]
        lines = ["%llguidance {}"]
        if choice == ToolChoice.AUTO:
            lines += self._free_start()
        else:
            lines += [f"start: {self._literal(self.format.marker)} calls".replace(":  ", ": ")]
        lines += self._calls_rules(parallel)
        lines.append("call: " + " | ".join(f"call_{index}" for index in range(len(names))))
        lines += [self._call_rule(index, name) for index, name in enumerate(names)]
        return GrammarSpec(GrammarKind.LARK, "\n".join(lines) + "\n")

    def reader(self) -> ToolReader:
        """Return what reads the calls back from an output."""
        return ToolReader(
            self.format, tuple(self._schemas), self.format.marker in self._special_ids
        )

    def instructions(self) -> str:
        """Describe tools and format, for the system message of a template without tools."""
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
        example = self.format.write([("<name>", "{...}")])
        return f"You may call these functions:\n{listed}\nTo call one, write\n{example}"

    def _free_start(self) -> list[str]:
        """Return the rules of an output that may be text, calls, or text before calls."""
        marker = self.format.marker
        if not marker:
            return ["start: calls | FREE", r"FREE: /([^{\s](?s:.*))?/"]
        if marker in self._special_ids:
            return [f"start: FREE | FREE {self._literal(marker)} calls", "FREE: /(?s:.*)/"]
        pattern = re.escape(marker).replace("/", r"\/")
        return [
            "start: FREE | before calls",
            f"FREE: /(?s:.*)/ & ~/(?s:.*){pattern}(?s:.*)/",
            f"before[lazy]: /(?s:.*){pattern}/",
        ]

    def _calls_rules(self, parallel: bool) -> list[str]:
        """Return the rules of one or more calls, behind the first marker."""
        opening, separator, closing, marker = (
            self._literal(text)
            for text in (
                self.format.opening,
                self.format.separator,
                self.format.closing,
                self.format.marker,
            )
        )
        if not parallel:
            return [f"calls: {opening} call {closing}"]
        if self.format.is_repeated:
            one = f"{opening} call {closing}"
            return [f"calls: {one} ({separator} {marker} {one})*"]
        return [f"calls: {opening} call ({separator} call)* {closing}"]

    def _call_rule(self, index: int, name: str) -> str:
        """Return the rule of a call of one tool."""
        head = json.dumps(f'{{"name": "{name}", "{self.format.arguments_key}": ')
        enforced = self._schemas[name]
        schema = json.dumps({**enforced, "x-guidance": json_options(enforced)})
        return f'call_{index}: {head} %json {schema} "}}"'

    def _literal(self, text: str) -> str:
        """Spell a literal in Lark, special tokens by their id."""
        if not text:
            return ""
        for special, token_id in self._special_ids.items():
            before, found, after = text.partition(special)
            if found:
                parts = (self._literal(before), f"<[{token_id}]>", self._literal(after))
                return " ".join(part for part in parts if part)
        return json.dumps(text)
