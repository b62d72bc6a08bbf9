"""JSON schemas: every keyword that a grammar would not enforce is refused by its name.

JSON Schema lets a validator ignore what it does not know. A constraint must not: the author of a
keyword relies on it. So a schema passes only if each of its keywords is enforced by the compiler
or is an annotation, which constrains nothing.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.json_pattern import PatternRefused, safe_pattern

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

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
# Characters that the library accepts in a second spelling once \u is allowed.
_SPELLED_TWICE = re.compile(r"[\x08-\x0f\x1a-\x1f\x7f]")
# Keywords whose value is a schema, a map of schemas, or a list of schemas.
_SCHEMA = frozenset({"items", "additionalProperties", "additionalItems"})
_SCHEMA_MAP = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_SCHEMA_LIST = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_IN_PLACE = ("anyOf", "oneOf", "allOf")

_ASSERTIONS = frozenset(
    [
        "type",
        "enum",
        "const",
        "multipleOf",
        "maximum",
        "exclusiveMaximum",
        "minimum",
        "exclusiveMinimum",
        "maxLength",
        "minLength",
        "pattern",
        "format",
        "maxItems",
        "minItems",
        "maxProperties",
        "minProperties",
        "required",
        "$ref",
    ]
)
# `discriminator` repeats what oneOf already says; `$anchor` gives a name that no `$ref` may use.
_ANNOTATIONS = frozenset(
    [
        "$schema",
        "$comment",
        "$anchor",
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "discriminator",
    ]
)
_COMPILER_OPTIONS = "x-guidance"
_EXTENSION_PREFIX = "x-"

_HINTS = {
    "nullable": 'use "type": [..., "null"]',
    "uniqueItems": "bound the array and check the values",
    "dependencies": "use anyOf",
    "dependentRequired": "use anyOf",
    "if": "use anyOf",
    "not": "list what is allowed",
}
# Deeper schemas are an attack on the stack rather than a description of data.
_MAX_DEPTH = 64

Schema = Mapping[str, Any] | bool


@dataclass(frozen=True, slots=True)
class _Located:
    """A schema and where it lies, as the tokens of its JSON pointer."""

    schema: Schema
    path: tuple[str, ...]


def _pointer(path: tuple[str, ...]) -> str:
    """Spell a JSON pointer as a fragment."""
    return "#" + "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in path)


def _reject(keyword: str, path: tuple[str, ...], reason: str) -> GrammarRejected:
    """Build the refusal of a keyword."""
    return GrammarRejected(
        "grammar", f"JSON schema keyword {keyword!r} at {_pointer(path)}: {reason}"
    )


def _children(keyword: str, value: Any, path: tuple[str, ...]) -> Iterator[_Located]:
    """Yield the schemas inside one keyword.

    Raises: GrammarRejected if the value has the wrong shape.
    """
    inner = (*path, keyword)
    if keyword in _SCHEMA_MAP:
        if not isinstance(value, Mapping):
            raise _reject(keyword, path, "must be an object of schemas")
        for name, schema in value.items():
            yield _Located(schema, (*inner, name))
    elif keyword in _SCHEMA_LIST or (keyword == "items" and isinstance(value, list)):
        if not isinstance(value, list):
            raise _reject(keyword, path, "must be a list of schemas")
        for index, schema in enumerate(value):
            yield _Located(schema, (*inner, str(index)))
    elif keyword in _SCHEMA:
        yield _Located(value, inner)


def _check_keyword(keyword: str, value: Any, path: tuple[str, ...]) -> None:
    """Raise unless the keyword is enforced, or constrains nothing."""
    if keyword == "$id":
        if path:
            raise _reject(keyword, path, "only the root may have one")
        return
    if keyword == "$ref":
        if not (isinstance(value, str) and (value == "#" or value.startswith("#/"))):
            raise _reject(keyword, path, f"{value!r} is not a pointer into this schema (#/...)")
        return
    if keyword in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool):
        raise _reject(keyword, path, "must be a number (the boolean form is of draft 4)")
    if keyword in _ASSERTIONS | _ANNOTATIONS | _SCHEMA | _SCHEMA_MAP | _SCHEMA_LIST:
        return
    if keyword.startswith(_EXTENSION_PREFIX) and keyword != _COMPILER_OPTIONS:
        return
    hint = _HINTS.get(keyword)
    raise _reject(keyword, path, "not supported" + (f"; {hint}" if hint else ""))


def _check_combinations(schema: Mapping[str, Any], path: tuple[str, ...]) -> None:
    """Raise for keywords that are enforced alone but not together."""
    if "additionalItems" in schema and not isinstance(schema.get("items"), list):
        raise _reject("additionalItems", path, "only beside a list of items; use items")
    if isinstance(schema.get("items"), list) and "prefixItems" in schema:
        raise _reject("items", path, "must be one schema beside prefixItems")
    is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
    required = schema.get("required", [])
    # A key that is not listed may be repeated, and only counts once: one such key is certain.
    certain = len(set(required)) + 1 if isinstance(required, list) else 1
    if not is_closed and schema.get("minProperties", 0) > certain:
        raise _reject("minProperties", path, "unlisted keys may repeat; list them as required")


def json_options(schema: Any) -> JsonCompileOptions:
    r"""Return how the library is to spell what satisfies a schema.

    `\u` is allowed only where a schema names characters that need it.
    """
    if not _NEEDS_U.search(json.dumps(schema)):
        return _ONE_SPELLING
    return {**_ONE_SPELLING, "json_allowed_escapes": '"\\bfnrtu'}


def inner_schemas(schema: Any, pointer: str = "#") -> Iterator[tuple[str, Any]]:
    """Yield the schemas directly inside a schema, each with its JSON pointer."""
    if isinstance(schema, Mapping):
        for keyword, value in schema.items():
            for child in _children(keyword, value, ()):
                yield "/".join([pointer, *_pointer(child.path).split("/")[1:]]), child.schema


def _check_spellings(found: Mapping[str, _Located]) -> None:
    """Raise for a listed key that could be spelled as an unlisted one with another schema."""
    for located in found.values():
        schema = located.schema
        if isinstance(schema, bool) or not isinstance(schema.get("properties"), Mapping):
            continue
        if schema.get("additionalProperties") is False and "patternProperties" not in schema:
            continue
        for key in filter(_SPELLED_TWICE.search, schema["properties"]):
            reason = f"key {key!r} has two spellings; close the object (additionalProperties)"
            raise _reject("properties", located.path, reason)


def _walk(root: Schema) -> dict[str, _Located]:
    """Check every keyword and return all schemas by pointer."""
    found: dict[str, _Located] = {}
    pending = [_Located(root, ())]
    while pending:
        located = pending.pop()
        schema, path = located.schema, located.path
        found[_pointer(path)] = located
        if isinstance(schema, bool):
            continue
        if not isinstance(schema, Mapping):
            raise GrammarRejected(
                "grammar", f"JSON schema at {_pointer(path)} must be an object or a boolean"
            )
        if len(path) > _MAX_DEPTH:
            raise GrammarRejected("grammar", f"JSON schema is nested deeper than {_MAX_DEPTH}")
        for keyword, value in schema.items():
            _check_keyword(keyword, value, path)
            pending.extend(_children(keyword, value, path))
        _check_combinations(schema, path)
    return found


def _in_place(located: _Located, found: Mapping[str, _Located]) -> Iterator[str]:
    """Yield the pointers of the schemas that apply to the same value as this one."""
    if isinstance(located.schema, bool):
        return
    for keyword in _IN_PLACE:
        for child in _children(keyword, located.schema.get(keyword, []), located.path):
            yield _pointer(child.path)
    if "$ref" in located.schema:
        target = unquote(located.schema["$ref"])
        if target not in found:
            raise _reject("$ref", located.path, f"{target} is not a schema")
        yield target


def _check_references(found: Mapping[str, _Located]) -> None:
    """Raise for a reference that leads nowhere, or back to itself without passing a value."""
    finished: set[str] = set()
    for start in found:
        open_pointers: set[str] = set()
        stack = [(start, False)]
        while stack:
            pointer, leaving = stack.pop()
            if leaving:
                open_pointers.discard(pointer)
                finished.add(pointer)
                continue
            if pointer in open_pointers:
                raise _reject("$ref", found[pointer].path, "refers to itself without end")
            if pointer in finished:
                continue
            open_pointers.add(pointer)
            stack.append((pointer, True))
            stack.extend((target, False) for target in _in_place(found[pointer], found))


def _make_patterns_safe(schema: dict[str, Any], path: tuple[str, ...]) -> None:
    """Rewrite the patterns of one schema in place."""
    try:
        if isinstance(schema.get("pattern"), str):
            schema["pattern"] = safe_pattern(schema["pattern"])
    except PatternRefused as error:
        raise _reject("pattern", path, f"{error} is not supported") from error
    try:
        by_key = schema.get("patternProperties", {})
        safe = {safe_pattern(pattern): inner for pattern, inner in by_key.items()}
    except PatternRefused as error:
        raise _reject("patternProperties", path, f"{error} is not supported") from error
    if safe:
        schema["patternProperties"] = safe


def enforceable_schema(schema: Any) -> Any:
    """Return the schema in the form that is enforced.

    Raises: GrammarRejected that names the first keyword which would not be enforced.
    """
    try:
        schema = copy.deepcopy(schema)
    except RecursionError:
        raise GrammarRejected("grammar", "JSON schema is nested too deep") from None
    found = _walk(schema)
    _check_references(found)
    if json_options(schema) is not _ONE_SPELLING:
        _check_spellings(found)
    for located in found.values():
        if isinstance(located.schema, dict):
            _make_patterns_safe(located.schema, located.path)
    return schema
