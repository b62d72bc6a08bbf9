"""Grammar of JSON values inside calls: by their schema, with the white space that models write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.json_schema import json_options
from tokenbus.engine.grammar.watching.list_places import has_marks

if TYPE_CHECKING:
    import re
    from collections.abc import Iterable

Schema = Mapping[str, Any]

# Nothing, a space, or a line and its indentation; more is a model that went astray.
_WHITE_SPACE = r"( |\n[ \t]{0,40})?"
_DEFINED = ("$defs", "definitions")
_FLEXIBLE = {
    "whitespace_flexible": True,
    "whitespace_pattern": _WHITE_SPACE,
    "item_separator": ",",
    "key_separator": ":",
}


def json_value(schema: Any, *, is_exact: bool = False) -> str:
    """Spell a value of JSON that satisfies a schema, which is enforceable as it stands.

    is_exact: with the one white space that a constraint by the schema alone has; so are values with
        lists that are followed, in which what is spelled alike is alike.
    """
    options: dict[str, Any] = {**json_options(schema)}
    if not is_exact and not has_marks(schema):
        options |= _FLEXIBLE
    return f"%json {json.dumps({**schema, 'x-guidance': options})}"


def with_definitions(schema: Any, root: Schema) -> Any:
    """Return a part of a schema with the definitions that it may refer to."""
    if not isinstance(schema, Mapping):
        return {} if schema is True else {"enum": []}
    defined = {f"#/{word}/{name}": (word, name) for word in _DEFINED for name in root.get(word, ())}
    shared: dict[str, dict[str, Any]] = {}
    pending: list[Any] = [schema] if defined else []
    while pending:
        one = pending.pop()
        inner = one.values() if isinstance(one, Mapping) else one if isinstance(one, list) else ()
        pending += inner
        target = one.get("$ref") if isinstance(one, Mapping) else None
        word, name = defined.pop(target, ("", "")) if isinstance(target, str) else ("", "")
        if word:
            shared.setdefault(word, {})[name] = root[word][name]
            pending.append(root[word][name])
    return {**shared, **schema}


def listed_arguments(schema: Schema) -> dict[str, Any]:
    """Return the schemas of the arguments that may be given, in their order.

    Raises: GrammarRejected if one is required that nothing can satisfy.
    """
    required = schema.get("required") or ()
    given: dict[str, Any] = {}
    for name, inner in (schema.get("properties") or {}).items():
        if inner is not False:
            given[name] = {} if inner is True else inner
        elif name in required:
            raise GrammarRejected("tools", f"nothing can satisfy #/properties/{name}")
    return given


def argument_cases(schema: Schema, *, writes_others: bool = False) -> list[Schema]:
    """Return schemas of objects, of which arguments satisfy one, with the definitions of the whole.

    What a schema says beyond its properties is written as such cases (`schema/writer.py`). One that
    only arguments could satisfy which are not listed is left out.

    Args:
        writes_others: arguments that are not listed are written where none is.
    Raises: GrammarRejected if there is none.
    """
    cases: list[Schema] = []
    for each in alternatives(schema, schema):
        case = {"type": "object"} if each is True else each
        if not isinstance(case, Mapping):
            continue
        fixed = [case["const"]] if "const" in case else case.get("enum")
        if fixed is not None:
            cases += [_fixed_case(value) for value in fixed if isinstance(value, dict)]
        elif case.get("type", "object") == "object":
            cases.append(with_definitions(case, schema))
    written = [_counted(case) for case in cases if _is_written(case, writes_others=writes_others)]
    if not written:
        reason = "more arguments than are listed" if cases else "nothing"
        raise GrammarRejected("tools", f"{reason} can satisfy #")
    return written


def checked_names(names: Iterable[str], pattern: re.Pattern[str]) -> None:
    """Refuse names of arguments that nobody could tell from what stands around them.

    Raises: GrammarRejected for `tools` with the place of the name.
    """
    for name in names:
        if not pattern.fullmatch(name):
            reason = "the model writes names bare, and this one could not be read back"
            raise GrammarRejected("tools", f"#/properties/{name}: {reason}")


def _is_written(case: Schema, *, writes_others: bool) -> bool:
    """Tell whether listed arguments are enough of them, or others stand in their place."""
    listed = [inner for inner in (case.get("properties") or {}).values() if inner is not False]
    is_open = case.get("additionalProperties", True) is not False
    has_others = writes_others and not listed and is_open
    return has_others or case.get("minProperties", 0) <= len(case.get("required") or ())


def _counted(case: Schema) -> Schema:
    """Return a case without a bound that what it requires satisfies."""
    if case.get("minProperties", 0) > len(case.get("required") or ()):
        return case
    return {key: each for key, each in case.items() if key != "minProperties"}


def _fixed_case(value: dict[str, Any]) -> Schema:
    properties = {name: {"const": each} for name, each in value.items()}
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


def resolved(schema: Any, root: Schema) -> Any:
    """Follow references inside the root, as far as they are all that a schema says."""
    seen: set[str] = set()
    while isinstance(schema, Mapping) and isinstance(schema.get("$ref"), str):
        target = schema["$ref"]
        if target in seen or not target.startswith("#/"):
            return schema
        seen.add(target)
        found: Any = root
        for key in target[2:].split("/"):
            key = key.replace("~1", "/").replace("~0", "~")  # noqa: PLW2901 - as pointers spell it
            found = found.get(key) if isinstance(found, Mapping) else None
        if found is None:
            return schema
        schema = found
    return schema


def alternatives(schema: Any, root: Schema) -> list[Any]:
    """Return the schemas of which a value satisfies one.

    By anyOf, oneOf or several types; of fixed values strings stand apart.
    """
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping):
        return [schema]
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            return [each for part in schema[key] for each in alternatives(part, root)]
    types, fixed = schema.get("type"), schema.get("enum")
    if isinstance(types, list):
        return [{**schema, "type": each} for each in types]
    if isinstance(fixed, list) and len({isinstance(value, str) for value in fixed}) > 1:
        texts = [value for value in fixed if isinstance(value, str)]
        others = [value for value in fixed if not isinstance(value, str)]
        return [{**schema, "enum": texts}, {**schema, "enum": others}]
    return [schema]
