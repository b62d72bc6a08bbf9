"""Grammar of what stands before an answer: reasoning, from a mark or the prompt on, to its end.

It is a grammar of its own, with the rule `before`, which a constraint on the answer stands behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import SPACE, SPACE_RULE
from tokenbus.engine.grammar.calls.channel_rules import ChannelRules
from tokenbus.engine.grammar.calls.free_text import FreeText
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.chat.reasoning_format import ReasoningFormat
    from tokenbus.engine.grammar.calls.added_tokens import AddedTokens


@dataclass(frozen=True, slots=True)
class ReasoningRule:
    """How the answer to one prompt begins.

    starts_inside: the prompt ends inside the reasoning block.
    is_allowed: the model may open a block.
    max_tokens: of reasoning, after which the block is closed; None is no bound.
    """

    starts_inside: bool = False
    is_allowed: bool = True
    max_tokens: int | None = None


def before_answer(
    chat_format: ChatFormat,
    tokens: AddedTokens,
    rule: ReasoningRule,
    closing_calls: Sequence[str] = (),
) -> str:
    """Return the Lark rules of `before`, "" if the answer begins at once.

    What opens the frame of an answer may be its end.

    Args:
        closing_calls: tokens that open calls, and so close a thought: none stands in it.
    Raises: RequestRejected for `max_reasoning_tokens` if no token closes the model's reasoning.
    """
    if chat_format.has_channels:
        return "\n".join([*ChannelRules(tokens, rule.max_tokens).before_answer(), SPACE_RULE])
    reasoning = chat_format.reasoning
    if reasoning is None:
        return ""
    framed = tokens.exact(reasoning.frame_open)
    framed = f"({framed})?" if framed else ""
    if not (rule.starts_inside or rule.is_allowed):
        return f"before: {framed}" if framed else ""
    thought, end, rules = _thought(reasoning, tokens, rule, closing_calls)
    block = f"{thought} {end}".lstrip()
    if not rule.starts_inside:
        block = f"({_opening(reasoning, tokens)} {block})?"
    return "\n".join([f"before: {block} {framed}".rstrip(), *rules, SPACE_RULE])


def closing_calls(
    chat_format: ChatFormat, tokens: AddedTokens, openings: Sequence[str]
) -> list[str]:
    """Return the tokens of calls that close a thought; none where a mark is words.

    openings: the texts that open calls.
    """
    reasoning = chat_format.reasoning
    if reasoning is None or not reasoning.is_closed_by_calls:
        return []
    marks = [tokens.leading(opening) for opening in openings]
    is_told = all(marks) and all(map(tokens.leading, reasoning.closes))
    return [mark for mark in marks if mark] if is_told else []


def unclosed_thought(
    chat_format: ChatFormat, tokens: AddedTokens, rule: ReasoningRule
) -> str | None:
    """Spell a thought beside the rules of `before`, without what closes it; None if there is none.

    Calls have to come behind it.
    """
    reasoning = chat_format.reasoning
    if reasoning is None or rule.max_tokens == 0:
        return None
    if rule.starts_inside:
        return "thought"
    return f"{_opening(reasoning, tokens)} thought" if rule.is_allowed else None


def free_answer(chat_format: ChatFormat, tokens: AddedTokens, rule: ReasoningRule) -> GrammarSpec:
    """Return a constraint on the reasoning alone: what stands behind it is free."""
    if chat_format.has_channels:
        channels = ChannelRules(tokens, rule.max_tokens)
        lines = [*channels.free_start(), "call: called", *channels.shared()]
        lines += [*channels.any_call("called"), SPACE_RULE]
        return GrammarSpec(GrammarKind.LARK, "\n".join(["%llguidance {}", *lines]) + "\n")
    lines = FreeText(tokens, ()).rules("start")
    source = "\n".join(["%llguidance {}", *lines]) + "\n"
    return GrammarSpec(GrammarKind.LARK, source, before_answer(chat_format, tokens, rule))


def _opening(reasoning: ReasoningFormat, tokens: AddedTokens) -> str:
    """Spell the mark that opens a block."""
    openings = " | ".join(tokens.spelled(mark) for mark in reasoning.opens)
    return f"{SPACE}? ({openings})"


def _thought(
    reasoning: ReasoningFormat,
    tokens: AddedTokens,
    rule: ReasoningRule,
    barred: Sequence[str],
) -> tuple[str, str, list[str]]:
    """Spell the inside of a block, what closes it, and their rules; a closing text is inside."""
    ends = f"({' | '.join(map(tokens.spelled, reasoning.closes))}) {SPACE}?"
    free = FreeText(tokens, reasoning.closes, barred)
    if rule.max_tokens == 0:
        return "", ends, []
    if rule.max_tokens is not None:
        if not tokens.first_in(reasoning.closes[0]):
            reason = "this model's reasoning ends in words, which no bound of tokens can force"
            raise RequestRejected("max_reasoning_tokens", reason)
        inner = "\n".join(line.replace("thought:", "start:", 1) for line in free.rules("thought"))
        limited = f"thought[max_tokens={rule.max_tokens + 1}]: %lark {{\n{inner}\n}}"
        return "thought", ends, [limited]
    rules = free.rules("thought")
    if all(map(tokens.leading, reasoning.closes)):
        return "thought", ends, rules
    ways: list[str] = []
    for idx, mark in enumerate(reasoning.closes):
        way, more = free.up_to("thought", mark, f"thought_end_{idx}")
        ways.append(way)
        rules += more
    return "", f"({' | '.join(ways)}) {SPACE}?", rules
