"""Calls held against the grammar of a chat format, letter by letter.

A reader takes more than a model writes; the grammar is what a model is held to. A call that a
template renders has to pass it, or `required` would force the model into a foreign form.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.grammar.limits import GrammarLimits
from tokenbus.engine.grammar.tool_calls import ToolCalling, ToolChoice
from tokenbus.engine.grammar.tools import FunctionTool
from tokenbus.engine.text.templates.template_traits import PARAMETERS, TOOL

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.engine.grammar.grammar import CompiledGrammar

# The start of a model must not depend on what else its machine does.
_LIMITS = GrammarLimits(token_ms=10_000.0)
_END = "<|end of the made-up answer|>"


def may_be_written(chosen: ChatFormat, answer: str, *, starts_inside: bool) -> bool:
    """Tell whether an answer of calls to the made-up tool passes the format's grammar.

    Marks are spelled by their letters here, whatever tokens a model has for them. What closes calls
    may be left out, as some templates do.

    Args:
        starts_inside: the answer begins in a reasoning block.
    """
    compiled = _compiled(chosen.name, starts_inside)
    try:
        compiled.matcher(_tokenizer().encode(answer.strip()))
    except GrammarRejected:
        return False
    return True


@cache
def _tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({char: idx for idx, char in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(_END, special=True, normalized=False)])
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return build(tokenizer_object=made, eos_token=_END)


@cache
def _compiler() -> GrammarCompiler:
    tokenizer = _tokenizer()
    end_id: Any = tokenizer.eos_token_id
    return GrammarCompiler(tokenizer, len(tokenizer), (end_id,), _LIMITS)


@cache
def _compiled(format_name: str, starts_inside: bool) -> CompiledGrammar:
    """Return the grammar of calls to the made-up tool in one format."""
    tools = [FunctionTool(TOOL, PARAMETERS)]
    calling = ToolCalling(tools, format_named(format_name), AddedTokens(_tokenizer()))
    rule = ReasoningRule(starts_inside=starts_inside)
    spec = calling.grammar(ToolChoice.REQUIRED, reasoning=rule, is_exact=False)
    return _compiler().compile(spec)
