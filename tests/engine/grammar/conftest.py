"""A tokenizer whose tokens cut JSON in all the wrong places."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tokenbus.engine.grammar.grammar import GrammarCompiler

if TYPE_CHECKING:
    from collections.abc import Callable

SAMPLES = [
    '{"name": "bus", "arguments": {"line": 7, "stops": ["north", "south"], "open": true}}',
    '[{"id": 12, "tags": [], "next": null}, {"id": -3.5e2, "ok": false}]',
    '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>',
    "The bus stops for everyone. Grüße, 今日は 🚌!",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over a little JSON; ids 0 and 1 are special, 0 ends a sequence."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>", "[TOOL_CALLS]"],
    )
    bpe.train_from_iterator(SAMPLES * 2, trainer)
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return build(
        tokenizer_object=bpe,
        eos_token="<|end|>",
        additional_special_tokens=["[TOOL_CALLS]"],
    )


@pytest.fixture(scope="session")
def compiler(tokenizer: PreTrainedTokenizerFast) -> GrammarCompiler:
    """The compiler of that tokenizer, for a model that pads the vocabulary."""
    return GrammarCompiler(tokenizer, len(tokenizer) + 13, (0,))


@pytest.fixture(scope="session")
def schemas() -> dict[str, dict[str, Any]]:
    """A hundred schemas over everything that is enforced."""
    path = Path(__file__).with_name("schemas.json")
    loaded: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return loaded
