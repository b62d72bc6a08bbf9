"""Calls drawn at random from their grammar: each is read back, and satisfies the tool's schema."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import torch
from family_tokenizers import FAMILIES, family_tokenizer
from models.drawn_arguments import drawn_arguments

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.grammar.tool_calls import ToolCalling
from tokenbus.engine.grammar.tools import FunctionTool
from tokenbus.engine.sampling.bitmask import unpack, unpack_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarMatcher

# Answers of gpt-oss may think for ever before they call.
CALLING = [family for family in FAMILIES if not format_named(family).has_channels]
OFTEN = ("gemma-4", "lfm2", "qwen3", "qwen3-coder")
NUM_DRAWS, MOST_TOKENS = 2, 250
NO_THOUGHT = ReasoningRule(is_allowed=False)
TABLE = unpack_table(torch.device("cpu"))


def drawn_call(
    matcher: GrammarMatcher, tokenizer: PreTrainedTokenizerFast, draw: random.Random
) -> str:
    """Draw tokens, plain letters where there are some; it ends soon once it may."""
    ids: list[int] = []
    while len(ids) < MOST_TOKENS and not matcher.is_finished:
        mask = unpack(matcher.mask()[None], len(tokenizer), TABLE)[0]
        allowed = mask.nonzero().flatten().tolist()
        if tokenizer.eos_token_id in allowed:
            allowed.remove(tokenizer.eos_token_id)
            if not allowed or draw.random() < 0.5:
                break
        plain = [each for each in allowed if each > 255 or str(tokenizer.decode([each])).isascii()]
        ids.append(draw.choice(plain or allowed))
        matcher.accept(ids[-1])
    return str(tokenizer.decode(ids))


def check_family(family: str, num_schemas: int) -> int:
    """Draw calls of random tools; return how many came to their end."""
    draw = random.Random(f"calls of {family}")
    tokenizer, chosen = family_tokenizer(family), format_named(family)
    end_id: Any = tokenizer.eos_token_id
    compiler = GrammarCompiler(tokenizer, len(tokenizer), (end_id,))
    num_whole = 0
    for _ in range(num_schemas):
        schemas = {name: drawn_arguments(draw) for name in ("f", "g.h-i")}
        tools = [FunctionTool(name, schema) for name, schema in schemas.items()]
        try:
            calling = ToolCalling(tools, chosen, AddedTokens(tokenizer))
            spec = calling.grammar("required", parallel=False, reasoning=NO_THOUGHT)
            grammar = compiler.compile(spec)
        except (GrammarRejected, RequestRejected) as error:
            told = str(error)
            assert "#/" in told or "cannot be held to its schema" in told, schemas
            continue
        for _ in range(NUM_DRAWS):
            matcher = grammar.matcher()
            text = drawn_call(matcher, tokenizer, draw)
            if not matcher.is_accepting:
                continue
            num_whole += 1
            reader = MessageReader(chosen, schemas, starts_in_reasoning=False, call_id=str)
            reader.push(text)
            reader.finish()
            calls = reader.message.complete_calls
            assert len(calls) == 1, (text, schemas)
            arguments = json.loads(calls[0].arguments)
            checker = jsonschema.FormatChecker()
            jsonschema.validate(arguments, schemas[calls[0].name], format_checker=checker)
    return num_whole


@pytest.mark.parametrize("family", OFTEN)
def test_drawn_calls_satisfy_their_schemas(family: str) -> None:
    """One family for each way of writing arguments."""
    assert check_family(family, num_schemas=3) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", CALLING)
def test_many_drawn_calls_satisfy_their_schemas(family: str) -> None:
    """All families but the one whose answers are messages."""
    assert check_family(family, num_schemas=12) > 8
