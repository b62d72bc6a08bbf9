"""Keys of an output's objects: none comes twice, whatever the model would like."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from drawn_outputs import drawn_output
from models.constraints import encode, schema_spec

from tokenbus.engine.errors import GrammarRejected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarCompiler

# Objects that are open to keys of a few letters, so that a random output likes to repeat them.
SHORT = {"pattern": "^[ab]{1,40}$"}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
OBJECT = {
    "type": "object",
    "properties": {"aa": {"const": 0}},
    "additionalProperties": DIGIT,
    "propertyNames": SHORT,
}


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({key for key, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


@pytest.mark.parametrize("schema", [OBJECT, {"type": "array", "items": OBJECT, "maxItems": 3}])
def test_no_key_comes_twice(
    schema: Any, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Of keys that nobody lists, in objects one after the other."""
    grammar = compiler.compile(schema_spec(schema))
    num_wide = 0
    for seed in range(40):
        matcher = grammar.matcher()
        text = drawn_output(matcher, tokenizer, seed, 300)
        if matcher.is_accepting:
            written = json.loads(text, object_pairs_hook=_no_key_twice)
            num_wide += len(written) > 2
    assert num_wide >= 3


@pytest.mark.parametrize(
    ("text", "may_pass"),
    [
        ('{"x": 1, "y": {"x": 1}, "z": [{"x": 2}, {"x": 3}]}', True),
        ('{"x": 1, "x": 2}', False),
        ('{"y": {"x": 1, "x": 1}}', False),
        ('{"a": "x", "x": "x\\", \\"x"}', True),
        ('[{"a\\"b": 1, "a\\"b": 2}]', False),
    ],
)
def test_keys_are_told_from_texts(
    text: str, may_pass: bool, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Each object has its own keys; texts and escapes are none."""
    grammar = compiler.compile(schema_spec({}))
    if may_pass:
        assert grammar.matcher(encode(tokenizer, text)).is_accepting
    else:
        with pytest.raises(GrammarRejected, match="comes twice"):
            grammar.matcher(encode(tokenizer, text))


def test_fork_has_keys_of_its_own(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What one row writes after the fork is no key of the other's."""
    matcher = compiler.compile(schema_spec({})).matcher(encode(tokenizer, '{"a": 1, "'))
    twin = matcher.fork()
    for token_id in encode(tokenizer, "b"):
        matcher.accept(token_id)
    for token_id in encode(tokenizer, 'b": 2}'):
        twin.accept(token_id)
    for token_id in encode(tokenizer, '": 2}'):
        matcher.accept(token_id)
    assert matcher.is_accepting
    assert twin.is_accepting
