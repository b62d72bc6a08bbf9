"""The official test suite of draft 2020-12: what compiles is enforced as the suite says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from models.schema_suite import CACHE, SuiteGroup, suite, verdicts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarCompiler

# Formats that are written by hand as patterns, all of whose tests are right.
FORMATS = [
    "date", "date-time", "duration", "email", "ipv4", "ipv6", "iri", "iri-reference",
    "json-pointer", "relative-json-pointer", "time", "uri", "uri-reference", "uri-template", "uuid",
]  # fmt: skip
# Formats of `format.json`, by whose tests a format is an annotation: a text that it does not fit is
# to pass. Here a format is enforced (docs/grammars.md), so of each of them that one test is wrong,
# on purpose. Every text that is written satisfies the schema by both readings.
ENFORCED = [*FORMATS, "regex"]
# Of these the short run has no test: their patterns are long.
_COSTLY = {"date-time", "time", "regex"}
SHORT = ["not.json", "if-then-else.json", "dependentSchemas.json", "optional/format/date.json"]


@pytest.fixture(scope="module")
def groups() -> list[SuiteGroup]:
    """Return the suite."""
    found = suite()
    if not found:
        pytest.skip(f"no sdist of jsonschema in {CACHE}")
    return found


@pytest.mark.parametrize("files", [SHORT, pytest.param(None, marks=pytest.mark.slow)])
def test_what_compiles_says_what_the_suite_says(
    groups: list[SuiteGroup],
    files: list[str] | None,
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """No test is wrong in core or in a format, `format.json` aside; refusals have a pointer."""
    exact = {f"optional/format/{name}.json" for name in FORMATS}
    chosen = [
        group
        for group in groups
        if group.file != "format.json"
        and ("/" not in group.file or group.file in exact)
        and (files is None or group.file in files)
    ]
    counts, wrong = verdicts(chosen, compiler, tokenizer)
    print(dict(counts))
    assert not wrong
    core, _ = verdicts([one for one in chosen if "/" not in one.file], compiler, tokenizer)
    assert core["right"] >= (890 if files is None else 50)


@pytest.mark.parametrize("left_out", [_COSTLY, pytest.param(set(), marks=pytest.mark.slow)])
def test_formats_that_are_annotations_by_default_are_enforced(
    groups: list[SuiteGroup],
    left_out: set[str],
    compiler: GrammarCompiler,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Of `format.json`, one test of each enforced format is wrong, and no other one."""
    chosen = [group for group in groups if group.file == "format.json"]
    chosen = [group for group in chosen if group.schema["format"] not in left_out]
    _, wrong = verdicts(chosen, compiler, tokenizer)
    assert sorted(": ".join(one.split(": ")[:2]) for one in wrong) == sorted(
        f"format.json: invalid {name} string is only an annotation by default"
        for name in ENFORCED
        if name not in left_out
    )


@pytest.mark.slow
def test_patterns_that_a_constraint_does_not_write(
    groups: list[SuiteGroup], compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Of the format `regex` those with names of groups, and no other one."""
    chosen = [group for group in groups if group.file.endswith("ecmascript-regex.json")]
    chosen = [group for group in chosen if "format" in group.schema]
    _, wrong = verdicts(chosen, compiler, tokenizer)
    assert all("an ECMA 262 named" in one for one in wrong)
