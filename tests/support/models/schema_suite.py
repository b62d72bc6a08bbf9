"""The JSON-Schema-Test-Suite of the sdist of jsonschema, and what a grammar says of its values."""

from __future__ import annotations

import itertools
import json
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.constraints import encode, schema_spec

from tokenbus.engine.errors import GrammarRejected

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import CompiledGrammar, GrammarCompiler

# Kept from `pip download --no-deps --no-binary jsonschema -d ~/.cache/tokenbus/tests jsonschema`.
CACHE = Path.home() / ".cache" / "tokenbus" / "tests"
_FOLDER = "/json/tests/draft2020-12/"
# Spellings of one value that are tried: orders of its keys, and 1 beside 1.0.
_MAX_SPELLINGS = 3000


@dataclass(frozen=True, slots=True)
class SuiteGroup:
    """One schema of the suite, and the values that it is tried with."""

    file: str
    schema: Any
    tests: list[dict[str, Any]]


def suite() -> list[SuiteGroup]:
    """Return all groups of draft 2020-12; none if no sdist is in the cache."""
    groups: list[SuiteGroup] = []
    for sdist in sorted(CACHE.glob("jsonschema-*.tar.gz"))[-1:]:
        with tarfile.open(sdist) as archive:
            for member in sorted(archive.getmembers(), key=lambda one: one.name):
                _, found, name = member.name.partition(_FOLDER)
                file = archive.extractfile(member) if found and name.endswith(".json") else None
                if file is not None:
                    groups += [
                        SuiteGroup(name, group["schema"], group["tests"])
                        for group in json.load(file)
                    ]
    return groups


def spellings(value: Any) -> Iterator[Any]:
    """Yield a value with its keys in every order, whole numbers with and without a fraction."""
    if isinstance(value, dict):
        for order in itertools.permutations(value):
            for inner in itertools.product(*(list(spellings(value[key])) for key in order)):
                yield dict(zip(order, inner, strict=True))
    elif isinstance(value, list):
        yield from map(list, itertools.product(*(list(spellings(item)) for item in value)))
    elif isinstance(value, float) and value == int(value) and abs(value) <= 2**53:
        yield from (value, int(value))
    elif isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53:
        yield from (value, float(value))
    else:
        yield value


def is_accepted(grammar: CompiledGrammar, tokenizer: PreTrainedTokenizerFast, value: Any) -> bool:
    """Tell whether a grammar accepts some spelling of a value."""
    for spelling in itertools.islice(spellings(value), _MAX_SPELLINGS):
        ids = encode(tokenizer, json.dumps(spelling, ensure_ascii=False))
        try:
            if grammar.matcher(ids).is_accepting:
                return True
        except GrammarRejected:
            continue
    return False


def verdicts(
    groups: list[SuiteGroup], compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> tuple[Counter[str], list[str]]:
    """Count tests that are right, refused and wrong; return the wrong ones and bad refusals."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    for group in groups:
        try:
            grammar = compiler.compile(schema_spec(group.schema))
        except GrammarRejected as error:
            counts["refused"] += len(group.tests)
            if "at #" not in str(error):
                wrong.append(f"{group.file}: no pointer: {error}")
            continue
        for test in group.tests:
            is_right = is_accepted(grammar, tokenizer, test["data"]) is test["valid"]
            counts["right" if is_right else "wrong"] += 1
            if not is_right:
                wrong.append(f"{group.file}: {test['description']}: {test['data']!r}")
    return counts, wrong
