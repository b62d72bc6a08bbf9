"""Grammar of arguments in braces: keys stand bare, strings between marks, other values as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.call_format import ParameterTags
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import quoted, sequence
from tokenbus.engine.grammar.calls.parameter_rules import ParameterRules
from tokenbus.engine.grammar.calls.value_rules import (
    alternatives,
    argument_cases,
    checked_names,
    listed_arguments,
    with_definitions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenbus.engine.grammar.calls.call_spelling import CallSpelling
    from tokenbus.engine.grammar.calls.value_rules import Schema

_SAYS_NOTHING = frozenset(
    {"title", "description", "$defs", "definitions", "examples", "default", "$schema", "$comment"}
)
# What holds for a value of each type here; a schema that says more is refused.
_HELD = {
    "array": frozenset({"type", "items", "minItems", "maxItems"}),
    "object": frozenset({"type", "properties", "required", "additionalProperties"}),
}
_PLAIN = frozenset({"number", "integer", "boolean", "null"})
_MAX_DEPTH = 16
_ANY_KEY = r"/[A-Za-z0-9_.-]{1,64}/"
# Keys that can be told from the signs around them.
_NAME = re.compile(r"""[^\s{}\[\]:,"<>]+""")


class BracedRules:
    """The rules of the arguments of one call; their names begin with `prefix`."""

    def __init__(self, quote: str, spelling: CallSpelling, prefix: str) -> None:
        self._quote = spelling.text(quote)
        self._texts = _QuotedTexts(quote, spelling, prefix)
        self._comma, self._colon = spelling.between(",", ","), spelling.between(":", ":")
        self._space, self._json = spelling.space, spelling.value
        self._prefix = prefix
        self._rules: list[str] = []
        self._num_objects = 0
        self._needs_any = False

    def rules(self, name: str, schema: Schema) -> Iterator[str]:
        """Yield the rules of all arguments, sorted as templates of the families show them.

        Raises: RequestRejected for the field `tools` if a value cannot be held to its schema.
        """
        cases = argument_cases(schema)
        for case in cases:
            checked_names(listed_arguments(case), _NAME)
        yield f"{name}: {' | '.join(self._one(case, case, 0) for case in cases)}"
        if self._needs_any:
            self._add_any()
        yield from self._rules

    def _value(self, schema: Any, root: Schema, depth: int) -> str:
        ways = [self._one(each, root, depth) for each in alternatives(schema, root)]
        return ways[0] if len(ways) == 1 else f"({' | '.join(ways)})"

    def _one(self, schema: Any, root: Schema, depth: int) -> str:
        if not isinstance(schema, Mapping):
            return self._any()
        said = {key: each for key, each in schema.items() if key not in _SAYS_NOTHING}
        kind = said.get("type")
        if "const" in said or "enum" in said:
            fixed = [said["const"]] if "const" in said else said["enum"]
            return f"({' | '.join(map(self._literal, fixed))})"
        if not said:
            return self._any() if depth else self._object({}, root, depth)
        if kind == "string":
            text, rules = self._texts.text(said)
            self._rules += rules
            return sequence((self._quote, text))
        if kind in _PLAIN:
            return self._json(with_definitions(said, root))
        if not isinstance(kind, str) or said.keys() - _HELD.get(kind, ()) or depth > _MAX_DEPTH:
            reason = "this value cannot be held to its schema where the model writes none of JSON"
            raise RequestRejected("tools", f"{reason}: {json.dumps(said)[:200]}")
        return (self._array if kind == "array" else self._object)(said, root, depth)

    def _array(self, schema: Schema, root: Schema, depth: int) -> str:
        item = self._value(schema.get("items", True), root, depth + 1)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if most == 0:
            return self._bracketed("[", "", "]")
        more = f"{{{max(least - 1, 0)},{'' if most is None else most - 1}}}"
        listed = f"{item} ({self._comma} {item}){more}"
        return self._bracketed("[", listed if least else f"({listed})?", "]")

    def _object(self, schema: Schema, root: Schema, depth: int) -> str:
        properties, others = listed_arguments(schema), schema.get("additionalProperties", True)
        if not properties and others is not False:
            value = self._value(others, root, depth + 1)
            member = f"{_ANY_KEY} {self._colon} {value}"
            return self._bracketed("{", f"({member} ({self._comma} {member})*)?", "}")
        self._num_objects += 1
        name = f"{self._prefix}_object_{self._num_objects}"
        pairs = {
            key: f"{quoted(key)} {self._colon} {self._value(inner, root, depth + 1)}"
            for key, inner in sorted(properties.items(), key=lambda member: member[0].lower())
        }
        self._add_members(name, pairs, schema.get("required") or ())
        return self._bracketed("{", f"{name}_0_first", "}")

    def _bracketed(self, first: str, inside: str, last: str) -> str:
        return sequence((quoted(first), self._space, inside, self._space, quoted(last)))

    def _add_members(self, name: str, pairs: Mapping[str, str], required: Sequence[str]) -> None:
        """Add the rules of members in their order: `name_i` is what may follow those before i.

        `name_i_first` is the same where none was written.
        """
        keys = list(pairs)
        for idx in range(len(keys), -1, -1):
            for behind, comma in (("", f"{self._comma} "), ("_first", "")):
                rule = f"{name}_{idx}{behind}"
                if idx == len(keys):
                    self._rules.append(f'{rule}: ""')
                    continue
                ways = [f"{comma}{pairs[keys[idx]]} {name}_{idx + 1}"]
                if keys[idx] not in required:
                    ways.append(f"{name}_{idx + 1}{behind}")
                self._rules.append(f"{rule}: {' | '.join(ways)}")

    def _literal(self, value: Any) -> str:
        """Spell a fixed value."""
        match value:
            case str():
                return sequence((self._quote, quoted(value) if value else "", self._quote))
            case list():
                items = f" {self._comma} ".join(map(self._literal, value))
                return f'"[" {items} "]"'
            case dict():
                pairs = (
                    f"{quoted(key)} {self._colon} {self._literal(each)}"
                    for key, each in value.items()
                )
                return f'"{{" {f" {self._comma} ".join(pairs)} "}}"'
        return quoted(json.dumps(value))

    def _any(self) -> str:
        self._needs_any = True
        return f"{self._prefix}_any"

    def _add_any(self) -> None:
        """Add the rules of values of which a schema says nothing more."""
        value = f"{self._prefix}_any"
        text, rules = self._texts.text({"type": "string"})
        member = f"{_ANY_KEY} {self._colon} {value}"
        plain = self._json({"type": ["number", "boolean", "null"]})
        ways = [sequence((self._quote, text)), plain]
        for first, each, last in (("[", value, "]"), ("{", member, "}")):
            listed = f"({each} ({self._comma} {each})*)?"
            ways.append(self._bracketed(first, listed, last))
        self._rules += [*rules, f"{value}: {' | '.join(ways)}"]


class _QuotedTexts(ParameterRules):
    """Strings up to the mark that closes them: as between tags, where they have no quotes."""

    def __init__(self, quote: str, spelling: CallSpelling, prefix: str) -> None:
        super().__init__(ParameterTags(quote, quote, quote), spelling, prefix)

    def text(self, schema: Schema) -> tuple[str, list[str]]:
        """Spell a string with its closing mark, and its further rules."""
        return self._text(schema)
