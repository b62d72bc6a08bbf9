"""Grammar of calls as expressions of Python: keyword arguments whose values are literals."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenbus.engine.grammar.calls.added_tokens import quoted, sequence
from tokenbus.engine.grammar.calls.value_rules import (
    alternatives,
    argument_cases,
    checked_names,
    json_value,
    listed_arguments,
    resolved,
    with_definitions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenbus.engine.grammar.calls.call_spelling import CallSpelling
    from tokenbus.engine.grammar.calls.value_rules import Schema

# A string in single quotes, which JSON does not know; no bounds of a schema hold in it.
_SINGLE_QUOTED = r"/'([^'\\\n]|\\.)*'/"
_SPELLED_OTHERWISE = frozenset({"boolean", "null"})
_SAYS_NOTHING = frozenset({"title", "description", "$defs", "definitions", "examples", "default"})
_MAX_DEPTH = 16
# Names of arguments that readers take.
_NAME = re.compile(r"[^\W\d][\w.-]*")
_NAMES_OF_PYTHON = ("True", "False", "None")
_NAMES = {True: '"True"', False: '"False"', None: '"None"'}


class PythonRules:
    """The rules of the arguments of one call; their names begin with `prefix`."""

    def __init__(self, prefix: str, spelling: CallSpelling, comma: str = ", ") -> None:
        """Prepare the rules; `comma` is how the format separates arguments."""
        self._prefix = prefix
        self._spelling = spelling
        self._space = spelling.space
        self._comma = spelling.between(",", ", ")
        self._between = spelling.between(",", comma)
        self._json = spelling.value
        self._rules: list[str] = []
        self._needs_any = False
        self._num_objects = 0
        # References that are being followed: a value inside of itself is JSON, which reads alike.
        self._followed: list[str] = []

    def rules(self, name: str, schema: Schema) -> Iterator[str]:
        """Yield the rules of all arguments, in the order of the schema."""
        equals = self._spelling.between("=", "=")
        names: list[str] = []
        for idx, case in enumerate(argument_cases(schema)):
            listed = listed_arguments(case)
            checked_names(listed, _NAME)
            pairs = {
                key: f"{quoted(key)} {equals} {self._value(inner, case, 0)}"
                for key, inner in listed.items()
            }
            names.append(f"{name}_case_{idx}")
            self._add_members(names[-1], pairs, case.get("required") or (), self._between)
        yield f"{name}: {' | '.join(names)}"
        yield from self._rules
        if self._needs_any:
            yield from self._any_rules()

    def _add_members(
        self, name: str, pairs: Mapping[str, str], required: Sequence[str], between: str
    ) -> None:
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
                comma = "" if is_first else f"{between} "
                ways = [f"{comma}{pairs[keys[idx]]} {name}_{idx + 1}"]
                if keys[idx] not in required:
                    ways.append(f"{name}_{idx + 1}{'_first' if is_first else ''}")
                self._rules.append(f"{rule}: {' | '.join(ways)}")
        self._rules.append(f"{name}: {name}_0_first")

    def _any_rules(self) -> Iterator[str]:
        """Yield the rules of values of which a schema says nothing more."""
        value, members = f"{self._prefix}_any_value", f"{self._prefix}_any_member"
        some_text, number = self._text({"type": "string"}), self._json({"type": "number"})
        names = " | ".join(map(quoted, (*_NAMES_OF_PYTHON, *self._names_of_json)))
        inner = f"{self._prefix}_any_object | {self._prefix}_any_array"
        yield f"{value}: {some_text} | {number} | {names} | {inner}"
        yield f"{members}: {some_text} {self._spelling.between(':', ': ')} {value}"
        for kind, first, each, last in (("array", "[", value, "]"), ("object", "{", members, "}")):
            listed = f"({each} ({self._comma} {each})*)?"
            yield f"{self._prefix}_any_{kind}: {self._bracketed(first, listed, last)}"

    @property
    def _names_of_json(self) -> Sequence[str]:
        """Return how JSON spells what Python spells otherwise, where models may mix them up."""
        return () if self._spelling.is_exact else ("true", "false", "null")

    def _text(self, schema: Any) -> str:
        """Spell any string; in single quotes too, where there is more than one way."""
        some = self._json(schema)
        return some if self._spelling.is_exact else f"({some} | {_SINGLE_QUOTED})"

    def _bracketed(self, first: str, listed: str, last: str) -> str:
        return sequence((quoted(first), self._space, listed, self._space, quoted(last)))

    def _value(self, schema: Any, root: Schema, depth: int) -> str:
        """Spell a value that satisfies a schema."""
        schema = {} if schema is True else schema
        target = schema.get("$ref") if isinstance(schema, Mapping) else None
        if target in self._followed:
            return self._json(with_definitions(schema, root))
        own = [target] if isinstance(target, str) else []
        self._followed += own
        ways = [self._one(each, root, depth) for each in alternatives(schema, root)]
        del self._followed[len(self._followed) - len(own) :]
        return ways[0] if len(ways) == 1 else f"({' | '.join(ways)})"

    def _one(self, schema: Any, root: Schema, depth: int) -> str:
        if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
            return self._json(with_definitions(schema, root))
        fixed = [schema["const"]] if "const" in schema else schema.get("enum")
        if fixed is not None:
            return f"({' | '.join(_literal(each) for each in fixed)})"
        kind = schema.get("type")
        if kind == "boolean":
            names = ("True", "False", *self._names_of_json[:2])
            return f"({' | '.join(map(quoted, names))})"
        if kind == "null":
            return f"({' | '.join(map(quoted, ('None', *self._names_of_json[2:])))})"
        if not {*schema} - _SAYS_NOTHING - {"type"} and kind in ("object", "array", None):
            self._needs_any = True
            return f"{self._prefix}_any_{kind or 'value'}"
        is_plain_text = kind == "string" and not {*schema} - {"type"} - _SAYS_NOTHING
        if is_plain_text:
            return self._text(schema)
        if not _has_python_names(schema, root, 0):
            return self._json(with_definitions(schema, root))
        if kind == "array" and not {*schema} & {"minItems", "maxItems", "prefixItems"}:
            item = self._value(schema.get("items", {}), root, depth + 1)
            return self._bracketed("[", f"({item} ({self._comma} {item})*)?", "]")
        if kind == "object" and schema.get("properties"):
            name = f"{self._prefix}_object_{self._num_objects}"
            self._num_objects += 1
            colon = self._spelling.between(":", ": ")
            pairs = {
                key: f"{_literal(key)} {colon} {self._value(inner, root, depth + 1)}"
                for key, inner in listed_arguments(schema).items()
            }
            self._add_members(name, pairs, schema.get("required") or (), self._comma)
            return self._bracketed("{", name, "}")
        return self._json(with_definitions(schema, root))


def _literal(value: Any) -> str:
    """Spell a fixed value as Python does."""
    if isinstance(value, str):
        return json_value({"const": value}, is_exact=True)
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
