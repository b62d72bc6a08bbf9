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
    "relative-json-pointer", "time", "uri", "uri-reference", "uri-template", "uuid",
]  # fmt: skip
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
    """No test is wrong in core or in a format; refusals have a pointer.

    `format.json` has formats say nothing, where a constraint has them enforced.
    """
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
    assert core["right"] >= (850 if files is None else 50)
