"""Constraints of tests, and what they allow."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarCompiler


def schema_spec(schema: Any) -> GrammarSpec:
    """Spell a JSON schema as a constraint."""
    return GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema))


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Encode without special tokens."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return ids


def accepts(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast, spec: GrammarSpec, text: str
) -> bool:
    """Return True if the constraint allows exactly this text."""
    try:
        return compiler.compile(spec).matcher(encode(tokenizer, text)).is_accepting
    except GrammarRejected:
        return False
