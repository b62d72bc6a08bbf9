"""Conversations as a model reads them: through its chat template, with the tools it may call.

A renderer is made once for a tokenizer. It finds out what the template does, chooses the chat
format, and proves it; then every request is rendered by the same rules. Tools that a template does
not render stand in a note, in the system message or before the first user turn.

It is one noun: the renderer, with all that a request may ask of one template.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
from tokenbus.engine.grammar.calls.reasoning_rules import (
    ReasoningRule,
    before_answer,
    free_answer,
)
from tokenbus.engine.grammar.calls.watched_calls import watched_content
from tokenbus.engine.grammar.limits import GrammarLimits
from tokenbus.engine.grammar.tool_calls import ToolCalling
from tokenbus.engine.text.templates.chat_settings import read_chat_template, template_sources
from tokenbus.engine.text.templates.chat_template import ChatTemplate, TemplateRefused
from tokenbus.engine.text.templates.chat_turns import ChatTurns
from tokenbus.engine.text.templates.filled_tools import filled_tool, filled_turn
from tokenbus.engine.text.templates.format_choice import FormatChooser
from tokenbus.engine.text.templates.template_traits import tool_names, traits_of
from tokenbus.engine.types import GrammarKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.grammar.tools import FunctionTool
    from tokenbus.engine.text.templates.chat_settings import ChatSettings
    from tokenbus.engine.types import GrammarSpec

# Stands at the end of a message that is to be continued; the prompt ends where it stands.
_CUT = "\N{WORD JOINER}tokenbus continues here\N{WORD JOINER}"

# Templates join these to texts, though a tokenizer may have none.
_NO_TOKENS = {"bos_token": "", "eos_token": ""}
# The roles that `ChatTurns` places so that each message is rendered.
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
# Arguments of templates by which clients say that the model shall not think.
_THINKING_NAMES = ("enable_thinking", "thinking")


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A rendered conversation, ready for the answer; special tokens are in it.

    starts_in_reasoning: the prompt ends inside a reasoning block, and so the answer begins there.
    may_reason: the model may open one; it was not asked to leave that.
    """

    text: str
    starts_in_reasoning: bool
    may_reason: bool = True

    def reasoning(self, max_tokens: int | None = None) -> ReasoningRule:
        """Return how the answer begins, with a bound on the tokens of its reasoning."""
        return ReasoningRule(self.starts_in_reasoning, self.may_reason, max_tokens)


class ChatRenderer:
    """Renders conversations for one model; safe to use from several threads."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_template: str | None = None,
        tool_format: str | None = None,
        reasoning_format: str | None = None,
        eos_token_ids: Sequence[int] = (),
        source_bytes: int | None = None,
    ) -> None:
        """Find out what the template does; takes a tenth of a second.

        Args:
            chat_template: used in place of the model's own.
            tool_format, reasoning_format: names of formats, chosen by the template if None.
            eos_token_ids: that end a sequence of the model, beside the tokenizer's own.
            source_bytes: of the parameters of all tools of a request; None is the engine's default.
        Raises: RequestRejected for the field `chat_template` if there is none or it is no template,
            and for the other two if there is no format of the name.
        """
        self._source_bytes = source_bytes or GrammarLimits.source_bytes
        names = dict(_NO_TOKENS)
        names |= {key: value for key, value in tokenizer.special_tokens_map.items() if value}
        plain, with_tools = template_sources(tokenizer, chat_template)
        try:
            self._plain = ChatTemplate(plain, names)
            self._with_tools = ChatTemplate(with_tools, names)
        except TemplateRefused as error:
            raise RequestRejected("chat_template", error.reason) from error
        if self._plain.is_deaf:
            raise RequestRejected("chat_template", "it renders no word of what a user says")
        self.traits = traits_of(self._with_tools)
        self.tokens = AddedTokens(tokenizer, eos_token_ids)
        chooser = FormatChooser(
            self._with_tools,
            self.traits,
            tuple(tokenizer.get_added_vocab()),
            str(tokenizer.eos_token or ""),
        )
        self.choice = chooser.choose(tool_format, reasoning_format)
        self._turns = ChatTurns(self.traits, self.choice)

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        settings: ChatSettings,
        eos_token_ids: Sequence[int] = (),
    ) -> ChatRenderer:
        """Return the renderer of a model by the settings of its engine. Raises: RequestRejected."""
        path = settings.chat_template
        return cls(
            tokenizer,
            chat_template=None if path is None else read_chat_template(path),
            tool_format=settings.tool_format,
            reasoning_format=settings.reasoning_format,
            eos_token_ids=eos_token_ids,
            source_bytes=settings.grammar_source_bytes,
        )

    @property
    def format(self) -> ChatFormat:
        """Return the way in which the model writes answers."""
        return self.choice.format

    @property
    def refusal(self) -> str:
        """Say why tools are refused, "" if they are not."""
        if self.format.calls is None and not self.choice.doubt:
            return "the tool format none has no calls"
        if not self.choice.doubt:
            return ""
        return (
            f"this model cannot be given tools: {self.choice.doubt}; --tool-format names a format"
        )

    @property
    def shown_ids(self) -> tuple[int, ...]:
        """Return the added tokens that an answer is read by: they are part of its text."""
        return self.tokens.ids_in(self.format.texts)

    def calling(self, tools: Sequence[FunctionTool]) -> ToolCalling:
        """Return the tools of a request. Raises: RequestRejected for the field `tools`."""
        if self.refusal:
            raise RequestRejected("tools", self.refusal)
        return ToolCalling(
            tools,
            self.format,
            self.tokens,
            self.choice.written,
            source_bytes=self._source_bytes,
        )

    def constrained(self, grammar: GrammarSpec | None, rule: ReasoningRule) -> GrammarSpec | None:
        """Return a constraint on the answer with the reasoning that stands before it.

        Without a constraint there is one only if reasoning has a bound.
        """
        if grammar is None:
            if rule.max_tokens is None or self.format.reasoning is None:
                return None
            return free_answer(self.format, self.tokens, rule)
        before = before_answer(self.format, self.tokens, rule)
        is_json = grammar.kind is GrammarKind.JSON_SCHEMA
        watched = watched_content(self.format, rule).dump() if before and is_json else ""
        return replace(grammar, before=before, watched=watched)

    def told(self) -> dict[str, object]:
        """Return what a log says of the choice."""
        calls, reasoning = self.format.name.split("/")
        return {
            "tool_format": calls,
            "reasoning_format": reasoning,
            "template_has_tools": self.traits.tools_name is not None,
            "template_has_calls": self.choice.shape is not None,
            "tools_refused": self.refusal or None,
        }

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        calling: ToolCalling | None = None,
        *,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
    ) -> ChatPrompt:
        """Render a conversation.

        Args:
            tools: as chat APIs spell them, for the template.
            calling: the same tools, for a template that renders none.
            chat_template_kwargs: what the template may ask for, `enable_thinking` for instance.
            add_generation_prompt: end with the beginning of an answer; None does so unless the
                last message is continued.
            continue_final_message: end inside the last message, an assistant's, so that the answer
                goes on with it.
        Raises: RequestRejected that names the field: what the template does not take.
        """
        if tools and self.refusal:
            raise RequestRejected("tools", self.refusal)
        if not self.traits.has_history and _has_answers(messages[:-1]):
            reason = "the model's chat template renders one exchange, and leaves earlier ones out"
            raise RequestRejected("messages", reason)
        if continue_final_message and add_generation_prompt:
            reason = "add_generation_prompt and continue_final_message exclude each other"
            raise RequestRejected("continue_final_message", reason)
        knows_tools = self.traits.tools_name is not None
        note = calling.instructions() if calling is not None and not knows_tools else ""
        turns = self._turns.of(messages, note)
        prefix = _begin_continuation(turns, messages) if continue_final_message else ""
        add = not continue_final_message if add_generation_prompt is None else add_generation_prompt
        names = {**(chat_template_kwargs or {})}
        shown = tools if knows_tools else ()
        text = self._rendered(turns, shown, names, add)
        self._check_roles(messages, turns, shown, names)
        if continue_final_message:
            text, found, _ = text.partition(_CUT)
            if not found:
                reason = "the model's chat template does not render the last message as it is"
                raise RequestRejected("continue_final_message", reason)
        may_reason = not any(names.get(name) is False for name in _THINKING_NAMES)
        return ChatPrompt(text, self._is_inside(text, prefix), may_reason)

    def _check_roles(
        self,
        messages: Sequence[Mapping[str, Any]],
        turns: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        names: Mapping[str, Any],
    ) -> None:
        """Refuse a role of the sender's own that the template leaves out. Raises: RequestRejected.

        Each such message is one turn, in the same order.
        """
        foreign = [idx for idx, message in enumerate(messages) if message.get("role") not in _ROLES]
        if not foreign:
            return
        marks = iter([f"{_CUT}{idx}{_CUT}" for idx in foreign])
        marked = [
            turn if turn.get("role") in _ROLES else {**turn, "content": next(marks)}
            for turn in turns
        ]
        try:
            text = self._rendered(marked, tools, names, False)
        except TemplateRefused:
            return  # It reads what they say.
        for idx in foreign:
            if f"{_CUT}{idx}{_CUT}" not in text:
                reason = f"the model's chat template renders no role {messages[idx].get('role')!r}"
                raise RequestRejected(f"messages.{idx}.role", reason)

    def _rendered(
        self,
        turns: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]],
        names: Mapping[str, Any],
        add_generation_prompt: bool,
    ) -> str:
        """Render turns; what a template lacks for that is filled in."""
        has_calls = any("tool_calls" in turn or turn.get("role") == "tool" for turn in turns)
        template = self._with_tools if tools or has_calls else self._plain
        given = {**tool_names(self.traits.tools_name, tools), **names}
        try:
            return template.render(
                turns, tools or None, add_generation_prompt=add_generation_prompt, names=given
            )
        except TemplateRefused as error:
            if not error.is_lacking:
                raise
        filled = [filled_tool(tool) for tool in tools]
        given = {**tool_names(self.traits.tools_name, filled), **names}
        whole = [filled_turn(turn) for turn in turns]
        return template.render(
            whole, filled, add_generation_prompt=add_generation_prompt, names=given
        )

    def _is_inside(self, text: str, continued: str) -> bool:
        """Tell whether an answer begins inside the reasoning block."""
        reasoning = self.format.reasoning
        if reasoning is None:
            return False
        opened = max(continued.rfind(mark) for mark in reasoning.opens)
        closed = max(continued.rfind(mark) for mark in reasoning.closes)
        if opened >= 0 or closed >= 0:
            return opened > closed
        # Some templates open the block before words that are continued.
        return reasoning.is_open_after(text.removesuffix(continued.lstrip()))


def _has_answers(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(message.get("role") == "assistant" for message in messages)


def _begin_continuation(turns: list[dict[str, Any]], messages: Sequence[Mapping[str, Any]]) -> str:
    """Mark the end of the last message; return its text. Raises: RequestRejected."""
    last = turns[-1] if turns else {}
    content = last.get("content")
    has_calls = bool(messages) and bool(messages[-1].get("tool_calls"))
    if last.get("role") != "assistant" or not isinstance(content, str) or has_calls:
        reason = "the last message must be an assistant's with text and without calls"
        raise RequestRejected("continue_final_message", reason)
    turns[-1] = {**last, "content": content + _CUT}
    return content
