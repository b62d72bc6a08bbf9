"""Grammar of calls as expressions of Python: keyword arguments whose values are literals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenbus.engine.grammar.calls.added_tokens import SPACE, quoted
from tokenbus.engine.grammar.calls.value_rules import (
    alternatives,
    json_value,
    listed_arguments,
    resolved,
    with_definitions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenbus.engine.grammar.calls.value_rules import Schema

_COMMA = f'{SPACE}? "," {SPACE}?'
# A string in single quotes, which JSON does not know; no bounds of a schema hold in it.
_SINGLE_QUOTED = r"/'([^'\\\n]|\\.)*'/"
_SPELLED_OTHERWISE = frozenset({"boolean", "null"})
_SAYS_NOTHING = frozenset({"title", "description", "$defs", "definitions", "examples", "default"})
_MAX_DEPTH = 16
_NAMES = {True: '"True"', False: '"False"', None: '"None"'}


class PythonRules:
    """The rules of the arguments of one call; their names begin with `prefix`."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._rules: list[str] = []
        self._needs_any = False

    def rules(self, name: str, schema: Schema) -> Iterator[str]:
        """Yield the rules of all arguments, in the order of the schema."""
        pairs = {
            key: f'{quoted(key)} {SPACE}? "=" {SPACE}? {self._value(inner, schema, 0)}'
            for key, inner in listed_arguments(schema).items()
        }
        self._add_members(name, pairs, schema.get("required") or ())
        yield from self._rules
        if self._needs_any:
            yield from self._any_rules()

    def _add_members(self, name: str, pairs: Mapping[str, str], required: Sequence[str]) -> None:
        """Add the rules of members in their order; those that may be left out take their comma.

        Rule `name_i` is what may follow when members before i were written, `name_i_first` when
        none was.
        """
        keys = list(pairs)
        for idx in range(len(keys), -1, -1):
            for is_first in (True, False):
                rule = f"{name}_{idx}{'_first' if is_first else ''}"
                if idx == len(keys):
                    self._rules.append(f'{rule}: ""')
                    continue
                comma = "" if is_first else f"{_COMMA} "
                ways = [f"{comma}{pairs[keys[idx]]} {name}_{idx + 1}"]
                if keys[idx] not in required:
                    ways.append(f"{name}_{idx + 1}{'_first' if is_first else ''}")
                self._rules.append(f"{rule}: {' | '.join(ways)}")
        self._rules.append(f"{name}: {name}_0_first")

    def _any_rules(self) -> Iterator[str]:
        """Yield the rules of values of which a schema says nothing more."""
        value, members = f"{self._prefix}_any_value", f"{self._prefix}_any_member"
        text, number = json_value({"type": "string"}), json_value({"type": "number"})
        some_text = f"({text} | {_SINGLE_QUOTED})"
        names = " | ".join(map(quoted, ("True", "False", "None", "true", "false", "null")))
        inner = f"{self._prefix}_any_object | {self._prefix}_any_array"
        yield f"{value}: {some_text} | {number} | {names} | {inner}"
        yield f'{members}: {some_text} {SPACE}? ":" {SPACE}? {value}'
        for kind, first, each, last in (("array", "[", value, "]"), ("object", "{", members, "}")):
            listed = f"({each} ({_COMMA} {each})*)?"
            rule = f"{self._prefix}_any_{kind}"
            yield f"{rule}: {quoted(first)} {SPACE}? {listed} {SPACE}? {quoted(last)}"

    def _value(self, schema: Any, root: Schema, depth: int) -> str:
        """Spell a value that satisfies a schema."""
        schema = {} if schema is True else schema
        ways = [self._one(each, root, depth) for each in alternatives(schema, root)]
        return ways[0] if len(ways) == 1 else f"({' | '.join(ways)})"

    def _one(self, schema: Any, root: Schema, depth: int) -> str:
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return json_value(with_definitions(schema, root))
        fixed = [schema["const"]] if "const" in schema else schema.get("enum")
        if fixed is not None:
            return f"({' | '.join(_literal(each) for each in fixed)})"
        kind = schema.get("type")
        if kind == "boolean":
            return '("True" | "False" | "true" | "false")'
        if kind == "null":
            return '("None" | "null")'
        if not {*schema} - _SAYS_NOTHING - {"type"} and kind in ("object", "array", None):
            self._needs_any = True
            return f"{self._prefix}_any_{kind or 'value'}"
        is_plain_text = kind == "string" and not {*schema} - {"type"} - _SAYS_NOTHING
        if is_plain_text:
            return f"({json_value(schema)} | {_SINGLE_QUOTED})"
        if not _has_python_names(schema, root, 0):
            return json_value(with_definitions(schema, root))
        if kind == "array" and not {*schema} & {"minItems", "maxItems", "prefixItems"}:
            item = self._value(schema.get("items", {}), root, depth + 1)
            return f'"[" {SPACE}? ({item} ({_COMMA} {item})*)? {SPACE}? "]"'
        if kind == "object" and schema.get("properties"):
            name = f"{self._prefix}_object_{len(self._rules)}"
            pairs = {
                key: f'{_literal(key)} {SPACE}? ":" {SPACE}? {self._value(inner, root, depth + 1)}'
                for key, inner in listed_arguments(schema).items()
            }
            self._add_members(name, pairs, schema.get("required") or ())
            return f'"{{" {SPACE}? {name} {SPACE}? "}}"'
        return json_value(with_definitions(schema, root))


def _literal(value: Any) -> str:
    """Spell a fixed value as Python does."""
    if isinstance(value, str):
        return json_value({"const": value})
    if value is None or isinstance(value, bool):
        return _NAMES[value]
    return quoted(repr(value))


def _has_python_names(schema: Any, root: Schema, depth: int) -> bool:
    """Tell whether a value may hold what Python spells in another way than JSON."""
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping):
        return False
    if depth > _MAX_DEPTH:
        return True
    types = schema.get("type")
    if not _SPELLED_OTHERWISE.isdisjoint(types if isinstance(types, list) else [types]):
        return True
    inner = [*(schema.get("properties") or {}).values(), schema.get("items")]
    inner += [each for key in ("anyOf", "oneOf", "allOf") for each in schema.get(key, ())]
    fixed = schema.get("enum", [schema.get("const", "")])
    names = any(value is None or isinstance(value, bool) for value in fixed)
    return names or any(_has_python_names(each, root, depth + 1) for each in inner)
