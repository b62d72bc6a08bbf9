"""Strings of a schema come out as they went in, whatever characters they hold."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.constraints import schema_spec

from tokenbus.engine.errors import GrammarRejected, ModelNotFound
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.sampling.bitmask import unpack, unpack_table
from tokenbus.engine.text.detokenizer import IncrementalDetokenizer
from tokenbus.engine.weights import model_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.grammar.grammar import GrammarMatcher

CHARACTERS = [
    *map(chr, range(0x20)),
    *'"\\/\x7f\x80\x9f\u00e9\u2028\u2029\ufeff\ud7ff\ue000\uffff\U00010000\U0001f600\U0010ffff',
]


@pytest.fixture(scope="module")
def demo() -> tuple[Any, GrammarCompiler]:
    """Return the demo model's tokenizer and its compiler."""
    from transformers import AutoTokenizer

    try:
        folder = model_store.pull("smollm2-135m")
    except ModelNotFound as error:
        pytest.skip(str(error))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer, GrammarCompiler(tokenizer, len(tokenizer), (tokenizer.eos_token_id,))


def written(demo: tuple[Any, GrammarCompiler], schema: Any, seed: int) -> str:
    """Return an output of a schema, drawn at random where there is a choice."""
    tokenizer, compiler = demo
    draw, ids = random.Random(seed), list[int]()
    matcher: GrammarMatcher = compiler.compile(schema_spec(schema)).matcher()
    while not matcher.is_finished:
        if forced := matcher.forced_tokens():
            ids += forced
            for token_id in forced:
                matcher.accept(token_id)
            continue
        bits = unpack(matcher.mask()[None], len(tokenizer), unpack_table(torch.device("cpu")))
        allowed = bits[0].nonzero().flatten().tolist()
        ids.append(draw.choice([one for one in allowed if one != tokenizer.eos_token_id]))
        matcher.accept(ids[-1])
    detokenizer = IncrementalDetokenizer(tokenizer, ())
    return "".join(detokenizer.push(ids)) + detokenizer.flush()


def _pattern(text: str) -> str:
    """Spell a text as a pattern that nothing else matches."""
    return "^" + "".join(f"\\u{{{ord(one):x}}}" for one in text) + "$"


def _escaped(text: str) -> str:
    """Return a pattern in which the characters stand for themselves."""
    return "^" + text.replace("\\", r"\\").replace("/", r"\/") + "$"


_SCHEMAS: dict[str, Callable[[str], Any]] = {
    "enum": lambda value: {"enum": [value]},
    "const": lambda value: {"const": value},
    "pattern": lambda value: {"type": "string", "pattern": _pattern(value)},
    "raw-pattern": lambda value: {"type": "string", "pattern": _escaped(value)},
    "key": lambda value: {
        "type": "object",
        "properties": {value: {"type": "null"}},
        "required": [value],
        "additionalProperties": False,
    },
    "inner-key": lambda value: {"enum": [{value: None}]},
}


@pytest.mark.parametrize("place", _SCHEMAS)
def test_every_character_comes_out_as_it_was_asked_for(
    demo: tuple[Any, GrammarCompiler], place: str
) -> None:
    """Control characters, DEL, quotes, backslashes and those of two code units, in any place."""
    values = [f"a{character}b" for character in CHARACTERS]
    schemas: list[Any] = [_SCHEMAS[place](value) for value in values]
    whole = {"type": "array", "prefixItems": schemas, "items": False, "minItems": len(schemas)}
    wanted = [{value: None} if "key" in place else value for value in values]
    assert json.loads(written(demo, whole, 1)) == wanted


@pytest.mark.parametrize("key", ["a\nb\x01", "a\x7fb", "a\x1fb"])
def test_key_with_two_spellings_is_not_listed_in_an_open_object(
    demo: tuple[Any, GrammarCompiler], key: str
) -> None:
    r"""A second spelling of a listed key (`\u000a`) would pass for an unlisted one: refused."""
    schema = {
        "type": "object",
        "properties": {key: {"type": "integer"}},
        "additionalProperties": {"type": "boolean"},
    }
    with pytest.raises(GrammarRejected, match=r"'properties' at #: key .* two spellings"):
        demo[1].compile(schema_spec(schema))
    demo[1].compile(schema_spec({**schema, "additionalProperties": False}))
