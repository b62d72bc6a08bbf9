"""Grammar of gpt-oss: an answer is a row of messages, each behind a header with its channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.grammar.calls.added_tokens import SPACE, escaped, quoted
from tokenbus.engine.grammar.calls.free_text import FreeText

if TYPE_CHECKING:
    from tokenbus.engine.grammar.calls.added_tokens import AddedTokens

_MARKS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>")
_CALL_END = "<|call|>"
# The name of a content type, and the other words between two marks of a header: a model that went
# astray would write either without end.
_KIND = "/[a-z]{1,16}/"
_HEAD = "/[^<]{0,120}/"


class ChannelRules:
    """The rules of messages; all marks are tokens where the model has them."""

    def __init__(self, tokens: AddedTokens, max_reasoning_tokens: int | None = None) -> None:
        self._spell = tokens.spelled
        self._exact = tokens.exact
        self._max_tokens = max_reasoning_tokens
        self._free = FreeText(tokens, (*_MARKS, _CALL_END))

    def free_start(self) -> list[str]:
        """Return the rules of an answer that may think, talk, call, or end at any time."""
        return [
            "start: told* (final | call | plain)",
            f"final: {self._header('final')} said {self._optional('<|end|>')}",
            *self._free.rules("plain", r"\s*to="),
        ]

    def content_start(self) -> list[str]:
        """Return the rules of an answer that may think, and is a call or the rule `content`."""
        return [
            "start: considered* (final | call)",
            f"final: {self._header('final')} content {self._optional('<|end|>')}",
        ]

    def required_start(self) -> list[str]:
        """Return the rules of an answer that is a call, behind reasoning."""
        return ["start: considered* call"]

    def before_answer(self) -> list[str]:
        """Return the rules of what stands before the text of the final message."""
        return [f"before: considered* {self._header('final')}", *self.shared()]

    def call(self, idx: int, name: str, arguments: str) -> list[str]:
        """Return the rules of `call_<idx>`; the channel may stand before or behind the name.

        Name and what stands before it are one pattern, which a text that begins alike gives way to.
        """
        kind = f'({self._spell("<|constrain|>")})? "json"'
        message, channel = self._spell("<|message|>"), self._spell("<|channel|>")
        named, to = f'{channel} ("commentary" | "analysis")', f"TO_{idx}"
        ends = self._optional(_CALL_END)
        body = f"({SPACE}? {kind})? {SPACE}? {message} {arguments} {ends}"
        return [
            f"call_{idx}: ({named} {to} | {to} {named}) {body}",
            rf"{to}: /[ \t\n]*to=functions\.{escaped(name)}/",
        ]

    def one_call(self, idx: int, head: str, arguments: str) -> str:
        """Return the rule of `call_<idx>` behind the one header that its family writes."""
        return f"call_{idx}: {self._exact(head)} {arguments} {self._optional(_CALL_END)}"

    def any_call(self, name: str) -> list[str]:
        """Return the rules of a message to whatever function."""
        message, channel = self._spell("<|message|>"), self._spell("<|channel|>")
        kind = f"{self._spell('<|constrain|>')}"
        ends = self._optional(_CALL_END)
        head = f"{_HEAD} ({channel} {_HEAD})? ({kind} {_HEAD})?"
        return [f"{name}: {head} {message} said {ends}"]

    def shared(self) -> list[str]:
        """Return the rules of messages before the last."""
        again = f'{self._spell("<|end|>")} {self._spell("<|start|>")} "assistant"'
        analysis, commentary = self._header("analysis"), self._header("commentary")
        rules = [
            f"considered: {analysis} thought {again}",
            f"told: considered | {commentary} said {again}",
            *self._free.rules("said"),
        ]
        if self._max_tokens is None:
            return [*rules, "thought: said"]
        inner = "\n".join(line.replace("inner:", "start:", 1) for line in self._free.rules("inner"))
        return [*rules, f"thought[max_tokens={self._max_tokens + 1}]: %lark {{\n{inner}\n}}"]

    def _header(self, channel: str) -> str:
        opened, message = self._spell("<|channel|>"), self._spell("<|message|>")
        kind = f"({SPACE}? {self._spell('<|constrain|>')} {_KIND})?"
        constrained = kind if channel == "final" else ""
        return f"{opened} {quoted(channel)} {constrained} {message}"

    def _optional(self, mark: str) -> str:
        return f"({self._spell(mark)})?"
