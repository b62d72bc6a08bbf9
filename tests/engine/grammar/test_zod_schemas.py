"""Schemas as zod prints them: nearly every constructor compiles.

`zod_schemas.json` is what `zod_schemas.mjs` beside it has made zod write, both ways and for two
drafts, each constructor that zod exports called at least once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from models.constraints import schema_spec

from tokenbus.engine.errors import GrammarRejected

if TYPE_CHECKING:
    from tokenbus.engine.grammar.grammar import GrammarCompiler

PRINTED = json.loads(Path(__file__).with_name("zod_schemas.json").read_text())
# Of a short run: texts with formats and patterns, objects open, closed and of themselves.
FEW = ("discriminatedUnion", "ipv6", "json", "jwt", "looseRecord", "uuid")
# What satisfies nothing, which is no schema to write an answer by.
EMPTY = {"never"}


@pytest.mark.parametrize("names", [FEW, pytest.param(None, marks=pytest.mark.slow)])
def test_constructors_compile(names: tuple[str, ...] | None, compiler: GrammarCompiler) -> None:
    """At least 95 % of the constructors compile in every way; a refusal has a pointer."""
    refused: dict[str, str] = {}
    chosen = names or sorted(PRINTED["schemas"])
    for name in chosen:
        for schema in PRINTED["schemas"][name]:
            try:
                compiler.compile(schema_spec(schema))
            except GrammarRejected as error:
                refused[name] = str(error)
    print(len(chosen), refused)
    assert all("at #" in reason for reason in refused.values())
    assert len(refused.keys() - EMPTY) <= 0.05 * len(chosen)
    assert len(PRINTED["schemas"]) >= 140
