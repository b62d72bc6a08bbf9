r"""Patterns of JSON strings against Python's `re`, quotes and escapes above all."""

from __future__ import annotations

import itertools
import json
import re
from typing import TYPE_CHECKING

import pytest

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.patterns.automaton import Automaton
from tokenbus.engine.grammar.patterns.language import Languages
from tokenbus.engine.grammar.patterns.pattern_languages import PatternLanguages
from tokenbus.engine.grammar.patterns.pattern_tree import read_pattern
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarCompiler

CHARACTERS = [*'abnt_]!"\\', "\n", "\t", "é"]

PATTERNS = [
    '^[^"]{2}$',
    r"^[^\\]{2}$",
    r'^[^aeiou"\\]{1,2}$',
    r'^[^"\n]{2}$',
    r"^[^\n\t]{2}$",
    "^[^!-/]{2}$",
    r'^[^\w"]{2}$',
    r"^[^\W]{2}$",
    "^.{2}$",
    r"^\S{2}$",
    r"^\D{2}$",
    r"^[\s\S]{2}$",
    r'^["\\]{1,2}$',
    r"^[ -!#-~]{2}$",
    r"^[]a]{2}$",
    r"^[^]a]{2}$",
    r"^\[[^\]]\]?$",
    '"',
    r"^\\",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_pattern_allows_what_re_matches(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast, pattern: str
) -> None:
    """Of all short strings exactly those pass that the pattern matches.

    Classes are those of ECMA-262, as JSON Schema asks: ASCII, and `$` is the very end.
    """
    expected = re.compile(pattern.replace("]?$", r"]?\Z").replace("}$", r"}\Z"), re.ASCII)
    schema = {"type": "string", "pattern": pattern}
    compiled = compiler.compile(GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
    for characters in itertools.product(CHARACTERS, repeat=2):
        text = "".join(characters)
        ids = tokenizer.encode(json.dumps(text, ensure_ascii=False), add_special_tokens=False)
        try:
            passes = compiled.matcher(ids).is_accepting
        except GrammarRejected:
            passes = False
        assert passes == bool(expected.search(text)), repr(text)


@pytest.mark.parametrize(
    "pattern",
    [
        r"^[\x00-!#-~]+$",
        "^[\\u0000-\\u0021]+$",
        r"^[\0-z]+$",
        r"^[a-z&&[^aeiou]]+$",
        "^[[:^punct:]]+$",
        r"^[\w--[a-z]]+$",
        r"^\P{P}+$",
        r"^\PP+$",
        r"^\p{Cc}+$",
        r"^\p{Any}+$",
        "^[a-z$",
    ],
)
@pytest.mark.parametrize("keyword", ["pattern", "patternProperties"])
def test_pattern_that_would_leak_is_refused_by_name(
    compiler: GrammarCompiler, keyword: str, pattern: str
) -> None:
    """What cannot be quoted correctly is refused with the keyword."""
    schema = (
        {"type": "string", "pattern": pattern}
        if keyword == "pattern"
        else {"type": "object", "patternProperties": {pattern: {"const": 1}}}
    )
    with pytest.raises(GrammarRejected, match=f"keyword '{keyword}'"):
        compiler.compile(GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema)))


@pytest.mark.parametrize("pattern", [r"^\p{L}+$", r"^\p{Lu}\P{L}$", r"^\p{Greek}+$", r"^\p{P}$"])
def test_ordinary_unicode_properties_compile(compiler: GrammarCompiler, pattern: str) -> None:
    """Letters, numbers, punctuation and scripts are enforced as they are."""
    schema = {"type": "string", "pattern": pattern, "maxLength": 4}
    compiler.compile(GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema)))


@pytest.mark.parametrize(
    "pattern",
    [
        r"\ba\b",
        r"\Ba",
        r"^(?!a\b)",
        r"a(?<=ba)b",
        r"(?<!a)b",
        r"(?<=^a)b",
        r"(?<=a-)b$",
        r"^(?!.*\bb\b).*$",
        r"^a*(?<!aa)b",
        r"(?<!a).(?<=b)$",
        r"^[ab-]*\b-\b",
        r"(?=\b)a(?!\B)",
        r"^(?:\ba|b\B){1,2}(?<!ab)$",
        r"(?<=(?:a|b)-)[ab]{2}\b",
    ],
)
def test_pattern_that_looks_around_says_what_re_says(pattern: str) -> None:
    """Ahead, behind, and at the edges of words."""
    languages = Languages()
    automaton = Automaton(languages, PatternLanguages(languages).of(read_pattern(pattern)))
    for length in range(1, 5):
        for characters in itertools.product("a-b", repeat=length):
            text = "".join(characters)
            assert automaton.accepts(text) is bool(re.search(pattern, text)), text


def test_place_in_an_empty_text_is_no_edge_of_a_word() -> None:
    """As ECMA-262 has it."""
    languages = Languages()
    of = PatternLanguages(languages).of
    assert Automaton(languages, of(read_pattern(r"\B"))).accepts("")
    assert not Automaton(languages, of(read_pattern(r"\b"))).accepts("")


@pytest.mark.parametrize("pattern", [r"(?<!\$)\$\{[a-z]+\}", r"^\w+\b!$"])
def test_pattern_that_looks_behind_compiles(
    pattern: str, compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What it leaves is enforced."""
    schema = {"type": "string", "pattern": pattern}
    compiled = compiler.compile(GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(schema)))
    for text in ("${ab}", "$${ab}", "x${a}y", "ab!", "!", "ab"):
        ids = tokenizer.encode(json.dumps(text), add_special_tokens=False)
        try:
            passes = compiled.matcher(ids).is_accepting
        except GrammarRejected:
            passes = False
        assert passes is bool(re.search(pattern, text)), text
