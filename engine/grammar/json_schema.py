"""JSON schemas: enforced exactly, or refused with the keyword, its place and the reason.

A schema is read (`schema/document.py`), and written anew (`schema/writer.py`) from what it claims
of each value, in forms that the grammar library enforces by themselves.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.schema.document import Document
from tokenbus.engine.grammar.schema.expansion import check_cycles
from tokenbus.engine.grammar.schema.keywords import SCHEMA, SCHEMA_LIST, SCHEMA_MAP
from tokenbus.engine.grammar.schema.refusal import StepBudget, pointer, refusal
from tokenbus.engine.grammar.schema.writer import SchemaWriter
from tokenbus.engine.grammar.watching.list_places import ListPlaces, has_marks

if TYPE_CHECKING:
    from collections.abc import Callable

    from llguidance._lib import JsonCompileOptions

    from tokenbus.engine.grammar.schema.refusal import Path

# One spelling per value, that of Python's json.dumps(ensure_ascii=False): most of the punctuation
# is then forced and costs no draw, whitespace cannot go on for ever, and no escape can spell a
# listed key in a way that passes for an unlisted one.
_ONE_SPELLING: JsonCompileOptions = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": '"\\bfnrt',
    "json_allow_general_unicode_escapes": False,
    "coerce_one_of": False,
    "lenient": False,
}
# Characters that only \u spells, in a schema as text of JSON: themselves or escaped in a pattern.
_NEEDS_U = re.compile(
    r"\\u00([01]|7f)|\\\\(x[017]|x\{0*[17]?[0-9A-Fa-f]\}|u00[017]|u\{|U000000[017]|[0acv])"
)
# Attempts to find the part of a schema at which it fails; each compiles a part of it.
_MAX_PARTS = 200
# Characters that the library accepts in a second spelling once \u is allowed.
_SPELLED_TWICE = re.compile(r"[\x08-\x0f\x1a-\x1f\x7f]")


def enforceable_schema(
    schema: Any,
    path: Path = (),
    *,
    is_watched: bool = False,
    budget: StepBudget | None = None,
) -> Any:
    """Return a schema that allows the same values, in the form that is enforced.

    path: of the part that is wanted, whose references lead into the whole. is_watched: outputs will
    be followed by an `ItemWatch`, so that lists may be marked for it. budget: of steps, shared with
    the schemas that stand beside it; one of its own if None.
    Raises: GrammarRejected that names the first keyword which would not be enforced.
    """
    budget = budget or StepBudget()
    try:
        document = Document(schema, budget)
        check_cycles(document)
        written = SchemaWriter(document, budget, is_watched=is_watched).write(path)
        if is_watched and has_marks(written):
            ListPlaces(written).check()
    except RecursionError:
        raise GrammarRejected("grammar", "JSON schema at #: nested too deep") from None
    if json_options(written) is not _ONE_SPELLING:
        _check_spellings(written)
    return written


def json_options(schema: Any) -> JsonCompileOptions:
    r"""Return how the library is to spell what satisfies a schema.

    `\u` is allowed only where a schema names characters that need it.
    """
    if not _NEEDS_U.search(json.dumps(schema)):
        return _ONE_SPELLING
    return {**_ONE_SPELLING, "json_allowed_escapes": '"\\bfnrtu'}


def inner_schemas(schema: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the schemas directly inside a schema, each with its path."""
    if not isinstance(schema, Mapping):
        return
    for word, value in schema.items():
        if word in SCHEMA_MAP and isinstance(value, dict):
            for name, one in value.items():
                yield (*path, word, name), one
        elif word in SCHEMA_LIST | {"items"} and isinstance(value, list):
            for index, one in enumerate(value):
                yield (*path, word, str(index)), one
        elif word in SCHEMA:
            yield (*path, word), value


def failing_place(schema: Any, fails: Callable[[Any], bool], seconds: float) -> str:
    """Return the pointer of the innermost part of a schema that fails by itself.

    fails: tells of a part, in the form that is enforced. seconds: of processor time, after which
    the part that was found last is the answer.
    """
    ends_at = time.process_time() + seconds
    path: Path = ()
    parts, num_tried = list(inner_schemas(schema)), 0
    while parts and num_tried < _MAX_PARTS and time.process_time() < ends_at:
        inner_path, inner = parts.pop(0)
        num_tried += 1
        with suppress(GrammarRejected):
            written = enforceable_schema(schema, inner_path, is_watched=True)
            if fails({} if written is True else written):
                path, parts = inner_path, list(inner_schemas(inner, inner_path))
    return pointer(path)


def _check_spellings(schema: Any) -> None:
    """Raise for a listed key that could be spelled as an unlisted one with another schema."""
    pending = [schema]
    while pending:
        one = pending.pop()
        if not isinstance(one, dict):
            continue
        pending += [inner for _, inner in inner_schemas(one)]
        if one.get("additionalProperties") is False and "patternProperties" not in one:
            continue
        for key in filter(_SPELLED_TWICE.search, one.get("properties", {})):
            reason = f"key {key!r} has two spellings; close the object (additionalProperties)"
            raise refusal("properties", (), reason)
