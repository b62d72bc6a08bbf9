"""Calls held against the grammar of a chat format, letter by letter.

A reader takes more than a model writes; the grammar is what a model is held to. A call that a
template renders has to pass it, or `required` would force the model into a foreign form.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tokenbus.engine.chat.chat_format import ChatFormat, format_named
from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule
from tokenbus.engine.grammar.limits import GrammarLimits
from tokenbus.engine.grammar.tool_calls import ToolCalling, ToolChoice
from tokenbus.engine.grammar.tools import FunctionTool
from tokenbus.engine.grammar.translation import library_grammar
from tokenbus.engine.grammar.vocabulary import GrammarVocabulary
from tokenbus.engine.text.templates.template_traits import PARAMETERS, TOOL

_LIMITS = GrammarLimits()
_END = "<|end of the made-up answer|>"


class _NoTokens:
    """A tokenizer without tokens beside its vocabulary."""

    added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012 -- nobody writes to it
    eos_token_id = None


def may_be_written(chosen: ChatFormat, answer: str, *, starts_inside: bool) -> bool:
    """Tell whether an answer of calls to the made-up tool passes the format's grammar.

    Marks are spelled by their letters here, whatever tokens a model has for them. What closes calls
    may be left out, as some templates do.

    Args:
        starts_inside: the answer begins in a reasoning block.
    """
    matcher = _matcher(chosen.name, starts_inside).deep_copy()
    return all(map(matcher.consume_token, _bytes().encode(answer.strip()).ids))


@cache
def _bytes() -> Tokenizer:
    """Return a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: idx for idx, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(_END, special=True, normalized=False)])
    return made


@cache
def _vocabulary() -> LLTokenizer:
    made = _bytes()
    end_id = made.token_to_id(_END)
    assert end_id is not None
    return GrammarVocabulary(made.to_str(), made.get_vocab_size(), (end_id,)).build()


@cache
def _matcher(format_name: str, starts_inside: bool) -> LLMatcher:
    """Return the grammar of calls to the made-up tool in one format, at its start."""
    no_tokens: Any = _NoTokens()
    tools = [FunctionTool(TOOL, PARAMETERS)]
    calling = ToolCalling(tools, format_named(format_name), AddedTokens(no_tokens))
    rule = ReasoningRule(starts_inside=starts_inside)
    spec = calling.grammar(ToolChoice.REQUIRED, reasoning=rule, is_exact=False)
    grammar = library_grammar(spec, _LIMITS)
    return LLMatcher(_vocabulary(), grammar, log_level=0, limits=_LIMITS.of_library)
