"""Matchers and compilation."""

from __future__ import annotations

import json
from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import torch
from models.constraints import accepts, encode, schema_spec

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.grammar.limits import MAX_FORCED_BYTES, GrammarLimits
from tokenbus.engine.grammar.vocabulary import GrammarVocabulary
from tokenbus.engine.sampling.bitmask import bitmask_width, unpack, unpack_table
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarMatcher

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "open": {"type": "boolean"}},
    "required": ["name", "open"],
    "additionalProperties": False,
}


def allowed(matcher: GrammarMatcher, vocab_size: int) -> set[int]:
    """Return the tokens a matcher allows next."""
    bits = unpack(matcher.mask().unsqueeze(0), vocab_size, unpack_table(torch.device("cpu")))
    return set(bits[0].nonzero().flatten().tolist())


@pytest.mark.parametrize(
    ("spec", "good", "bad"),
    [
        (GrammarSpec(GrammarKind.REGEX, "[a-c]{2}[0-9]+"), ["ab1", "cc42"], ["a1", "ab", "abx"]),
        (
            GrammarSpec(GrammarKind.CHOICE, json.dumps(["yes", "no", 'a "b"\n\\', "é🚌", "ye"])),
            ["yes", "no", 'a "b"\n\\', "é🚌", "ye"],
            ["y", "yes ", "maybe", ""],
        ),
        (
            GrammarSpec(GrammarKind.LARK, 'start: "(" item* ")"\nitem: /[0-9]/ | start'),
            ["()", "(1(2)3)"],
            ["(", "(a)", "())"],
        ),
        (
            schema_spec(PERSON),
            ['{"name": "Bo", "open": true}'],
            ['{"name": "Bo"}', '{"open": true, "name": "Bo"}', '{"name":"Bo","open":true}'],
        ),
    ],
    ids=["regex", "choice", "lark", "json-schema"],
)
def test_every_kind_allows_its_language_and_nothing_else(
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerFast,
    spec: GrammarSpec,
    good: list[str],
    bad: list[str],
) -> None:
    """A constraint covers the whole output: no prefix, no suffix, no other spelling."""
    assert all(accepts(compiler, tokenizer, spec, text) for text in good)
    assert not any(accepts(compiler, tokenizer, spec, text) for text in bad)


def test_vocabulary_is_read_without_padding_and_truncation(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """What a tokenizer does to texts for batches is no part of it, and stays with the tokenizer."""
    wanted = GrammarVocabulary.of(tokenizer, len(tokenizer), (0,))
    other = deepcopy(tokenizer)
    other.backend_tokenizer.enable_padding()
    other.backend_tokenizer.enable_truncation(7)
    assert GrammarVocabulary.of(other, len(tokenizer), (0,)) == wanted
    assert other.backend_tokenizer.truncation


def test_mask_is_what_accept_allows(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A bit is set if and only if the token can be accepted, at every place of an output.

    Where the text is forced the mask has the one token that spells it as the tokenizer would.
    """
    vocab_size = len(tokenizer) + 13
    matcher = compiler.compile(schema_spec(PERSON)).matcher()
    assert matcher.mask().shape == (bitmask_width(vocab_size),)
    for token_id in encode(tokenizer, '{"name": "é\\n", "open": true}'):
        acceptable = set()
        for candidate in range(vocab_size):
            fork = matcher.fork()
            with suppress(GrammarRejected):
                fork.accept(candidate)
                acceptable.add(candidate)
        bits = allowed(matcher, vocab_size)
        assert bits == acceptable or (len(bits) == 1 and bits < acceptable)
        matcher.accept(token_id)
    assert matcher.is_finished
    assert allowed(matcher, vocab_size) == {0}


def test_end_is_allowed_where_the_grammar_may_end_and_only_there(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """The end of the sequence is in the mask exactly at accepting places."""
    matcher = compiler.compile(GrammarSpec(GrammarKind.REGEX, "ab*")).matcher()
    assert 0 not in allowed(matcher, len(tokenizer))
    for _ in range(2):
        matcher.accept(encode(tokenizer, "a" if not matcher.is_accepting else "b")[0])
        assert matcher.is_accepting
        assert not matcher.is_finished
        assert 0 in allowed(matcher, len(tokenizer))


def test_forced_tokens_have_no_alternative(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Forced tokens can all be accepted, and spell what every output has to contain."""
    compiled = compiler.compile(schema_spec(PERSON))
    matcher = compiled.matcher(encode(tokenizer, '{"name": "Bo"'))
    forced = matcher.forced_tokens()
    assert forced
    assert ', "open": '.startswith(str(tokenizer.decode(forced)))
    for token_id in forced:
        assert token_id in allowed(matcher, len(tokenizer))
        matcher.accept(token_id)
    free = compiled.matcher(encode(tokenizer, '{"name": "B'))
    assert free.forced_tokens() == []


def test_run_too_long_to_be_forced_is_drawn_token_by_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Each mask on its way leaves one token, until the rest is short enough to be forced."""
    text = "bus " * (MAX_FORCED_BYTES // 4 + 3)
    spec = GrammarSpec(GrammarKind.CHOICE, json.dumps([text, "x"]))
    limits = GrammarLimits(token_ms=5000)
    matcher = GrammarCompiler(tokenizer, len(tokenizer), (0,), limits).compile(spec).matcher()
    drawn = encode(tokenizer, "b")
    matcher.accept(drawn[0])
    while not (forced := matcher.next_tokens(len(text)).forced):
        (only,) = allowed(matcher, len(tokenizer))
        matcher.accept(only)
        drawn.append(only)
    assert len(drawn) > 1
    assert tokenizer.decode([*drawn, *forced]) == text
    assert matcher.is_finished


def test_next_tokens_are_known_to_all_who_come_to_a_place(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What one has found, and no more of it than is left to it, the next one has at once."""
    spec = GrammarSpec(GrammarKind.CHOICE, json.dumps(["red sky", "ready", "no", "nor any"]))
    compiled = compiler.compile(spec)
    for text in ("n", "re", "red"):
        ids = encode(tokenizer, text)
        first, second, fresh = (
            compiled.matcher(ids),
            compiled.matcher(ids),
            compiler.compile(spec).matcher(ids),
        )
        assert second.known_next(9) is None
        found = first.next_tokens(9)
        assert list(found.forced) == fresh.forced_tokens()
        known = second.known_next(9)
        assert known is not None
        assert known.forced == found.forced
        assert known.mask is found.mask
        assert second._path == first._path
        assert second.is_finished == first.is_finished
        third = compiled.matcher(ids)
        assert third.next_tokens(1).forced == found.forced[:1]
        assert compiled.matcher(ids).next_tokens(0).forced == ()


def test_fork_and_rebuild_stand_where_the_original_stands(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Forks go separate ways; a matcher fed with logged ids has the mask of the unbroken one."""
    compiled = compiler.compile(schema_spec(PERSON))
    ids = encode(tokenizer, '{"name": "Bo", "open": false}')
    matcher = compiled.matcher()
    for count, token_id in enumerate(ids):
        assert torch.equal(compiled.matcher(ids[:count]).mask(), matcher.mask())
        fork = matcher.fork()
        matcher.accept(token_id)
        assert torch.equal(fork.mask(), compiled.matcher(ids[:count]).mask())


def test_mask_of_a_place_is_made_once_for_all_who_come_there(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Outputs that begin alike share masks, which are those of a grammar that nobody has used."""
    spec = GrammarSpec(GrammarKind.CHOICE, json.dumps(["red", "green", "grey"]))
    compiled, unused = compiler.compile(spec), compiler.compile(spec)
    first, second = compiled.matcher(), compiled.matcher()
    for token_id in encode(tokenizer, "gree"):
        assert second.known_mask() is None or second.mask() is first.mask()
        mask = first.mask()
        assert second.known_mask() is mask
        assert torch.equal(mask, unused.matcher(first._path or ()).mask())
        for matcher in (first, second):
            matcher.accept(token_id)
    assert compiled.matcher(encode(tokenizer, "r")).known_mask() is None


def test_place_that_was_left_for_another_has_its_own_mask(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Forks of one matcher, and outputs of many tokens, never get the mask of another place."""
    compiled = compiler.compile(GrammarSpec(GrammarKind.REGEX, "(a{30}b|[c-z]{2}[0-9])"))
    unused = compiler.compile(GrammarSpec(GrammarKind.REGEX, "(a{30}b|[c-z]{2}[0-9])"))
    (a, b), long = encode(tokenizer, "a") + encode(tokenizer, "b"), compiled.matcher()
    for count in range(30):
        assert torch.equal(long.mask(), unused.matcher([a] * count).mask())
        long.accept(a)
    assert torch.equal(long.mask(), unused.matcher([a] * 30).mask())
    assert allowed(long, len(tokenizer)) == {b}
    for letter in "cdefghijklmnopqrstuvwxyz":
        for other in "cdef":
            ids = encode(tokenizer, letter) + encode(tokenizer, other)
            assert torch.equal(compiled.matcher(ids).mask(), unused.matcher(ids).mask())
    assert len(compiled.masks) == 64
    assert compiled.mask_bytes == 64 * 4 * bitmask_width(len(tokenizer) + 13)


def test_first_mask_takes_no_matcher_of_its_own(compiler: GrammarCompiler) -> None:
    """Of an output of one token only the first mask is asked for: nothing is copied for it."""
    compiled = compiler.compile(GrammarSpec(GrammarKind.CHOICE, json.dumps(["yes", "no"])))
    mask = compiled.matcher().mask()

    def copied() -> None:
        pytest.fail("a matcher was copied")

    stub: Any = Mock(wraps=compiled.prototype, deep_copy=copied)
    compiled.prototype = stub
    late = compiled.matcher()
    assert late.mask() is mask
    assert not late.is_finished
    assert not late.is_accepting
    assert not late.is_broken


def test_refused_token_is_an_error_of_this_matcher_alone(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A token outside the mask raises, again and again; other matchers go on."""
    compiled = compiler.compile(schema_spec(PERSON))
    broken, healthy = compiled.matcher(), compiled.matcher()
    for _ in range(2):
        with pytest.raises(GrammarRejected):
            broken.accept(encode(tokenizer, "x")[0])
    with pytest.raises(GrammarRejected):
        broken.mask()
    healthy.accept(encode(tokenizer, "{")[0])


def test_listed_key_cannot_be_spelled_as_an_unlisted_one(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """An escape does not smuggle a listed key past its own schema."""
    spec = schema_spec(
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "/": {"type": "integer"}},
            "additionalProperties": {"type": "boolean"},
        }
    )
    assert accepts(compiler, tokenizer, spec, '{"b": true}')
    for text in ('{"a": true}', '{"\\u0061": true}', '{"\\/": true}', '{"a": 1, "a": true}'):
        assert not accepts(compiler, tokenizer, spec, text)


def test_model_without_an_end_of_sequence_is_constrained_all_the_same(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """The mask has no bit for an end that the model cannot sample; the grammar still finishes."""
    vocab_size = len(tokenizer)
    matcher = (
        GrammarCompiler(tokenizer, vocab_size, ())
        .compile(GrammarSpec(GrammarKind.CHOICE, json.dumps(["yes", "no"])))
        .matcher()
    )
    for token_id in encode(tokenizer, "yes"):
        assert allowed(matcher, vocab_size)
        matcher.accept(token_id)
    assert matcher.is_finished
    assert not allowed(matcher, vocab_size)


def test_choice_of_thousands_that_begin_alike_is_followed_to_its_end(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """However many texts are still possible, each is as good as one of two."""
    texts = [f"the bus of line {number} stops" for number in range(3000)]
    spec = GrammarSpec(GrammarKind.CHOICE, json.dumps(["", *texts]))
    for text in ("", texts[1777], texts[-1]):
        assert accepts(compiler, tokenizer, spec, text)
        assert not accepts(compiler, tokenizer, spec, text + " no")
