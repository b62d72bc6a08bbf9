"""Grammar of arguments between tags: strings as they are, all other values as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import escaped, quoted, sequence
from tokenbus.engine.grammar.calls.free_text import FreeText
from tokenbus.engine.grammar.calls.value_rules import (
    alternatives,
    argument_cases,
    checked_names,
    listed_arguments,
    resolved,
    with_definitions,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenbus.engine.chat.call_format import ParameterTags
    from tokenbus.engine.grammar.calls.call_spelling import CallSpelling
    from tokenbus.engine.grammar.calls.value_rules import Schema

_PYTHON_NAMES = {"boolean": '"True" | "False"', "null": '"None"'}
# Words of a schema by which a value may still be anything.
_SAYS_NOTHING = frozenset({"title", "description", "examples", "default"})
# Names of arguments that no schema lists, and those that can be told from the tags around them.
_ANY_NAME = r"[A-Za-z0-9_.-]{1,64}"
_NAME = re.compile(r"""[^\s<>"]([^<>"\n\r]*[^\s<>"])?""")


class ParameterRules:
    """The rules of the arguments of one call; their names begin with `prefix`."""

    def __init__(self, tags: ParameterTags, spelling: CallSpelling, prefix: str) -> None:
        self._tags = tags
        self._tokens = spelling.tokens
        self._spelling = spelling
        self._spell = spelling.text
        self._prefix = prefix
        self._mark = tags.close.strip()
        self._num_values = 0

    def rules(self, name: str, schema: Schema) -> Iterator[str]:
        """Yield the rules of all arguments, in the order of the schema.

        Raises: RequestRejected for the field `tools` if they cannot be held to it.
        """
        cases: list[str] = []
        rules: list[str] = []
        for case in argument_cases(schema, writes_others=True):
            parts, more = self._case(case)
            cases.append(" ".join(parts) or '""')
            rules += more
        yield f"{name}: {' | '.join(cases)}"
        yield from rules

    def _case(self, schema: Schema) -> tuple[list[str], list[str]]:
        """Spell arguments that satisfy one case."""
        properties = listed_arguments(schema)
        checked_names(properties, _NAME)
        required = schema.get("required") or ()
        parts: list[str] = []
        rules: list[str] = []
        for key, inner in properties.items():
            value, more = self._argument(quoted(key), inner, schema)
            parts.append(value if key in required else f"({value})?")
            rules += more
        others = self._other_names(schema)
        bounds = schema.get("minProperties", 0), schema.get("maxProperties")
        if others and properties and bounds != (0, None):
            reason = "the number of arguments that are not listed cannot be held to its bounds"
            raise RequestRejected("tools", reason)
        for inner, names in others:
            terminal = f"{self._new_name().upper()}_NAME"
            value, more = self._argument(terminal, inner, schema)
            ends = "" if bounds[1] is None else bounds[1]
            parts.append(f"({value}){{{bounds[0]},{ends}}}")
            rules += [*more, f"{terminal}: {names}"]
        return parts, rules

    def _other_names(self, schema: Schema) -> list[tuple[Any, str]]:
        """Return the schemas of arguments that are not listed, each with the names that have it.

        Beside listed ones there are none, unless they are told by a pattern.
        """
        patterns = schema.get("patternProperties") or {}
        listed = schema.get("properties") or {}
        barred = [escaped(name) for name in listed]
        found: list[tuple[Any, str]] = []
        for pattern, inner in patterns.items():
            whole = self._spelling.pattern(pattern)
            if inner is not False:
                found.append((inner, _names(barred, whole)))
            barred.append(whole)
        rest = schema.get("additionalProperties", True)
        is_none_listed = all(inner is False for inner in listed.values())
        if rest is not False and (patterns or is_none_listed):
            found.append((rest, _names(barred)))
        if len(found) > 1 and schema.get("maxProperties") is not None:
            reason = "the number of arguments that are not listed cannot be held to its bounds"
            raise RequestRejected("tools", reason)
        return found

    def _argument(self, name: str, schema: Any, root: Schema) -> tuple[str, list[str]]:
        """Spell one argument with its tags."""
        ways: list[str] = []
        rules: list[str] = []
        for each in alternatives(schema, root):
            each = {} if each is True else each  # noqa: PLW2901 - the same, as a mapping
            for is_text in self._kinds(each):
                head = (is_text and self._tags.string_name_close) or self._tags.name_close
                inside, more = self._text(each) if is_text else self._other(each, root)
                ways.append(sequence((self._spell(head), inside)))
                rules += more
        behind = self._tags.close[len(self._tags.close.rstrip()) :]
        opened = self._spell(self._tags.open)
        return sequence((opened, name, f"({' | '.join(ways)})", self._spell(behind))), rules

    def _kinds(self, schema: Any) -> Sequence[bool]:
        """Return whether a value is a string: both where the tags tell, and the schema does not."""
        is_told = bool(self._tags.string_name_close)
        is_anything = isinstance(schema, Mapping) and not {*schema} - _SAYS_NOTHING
        return (True, False) if is_told and is_anything else (_is_text(schema),)

    def _other(self, schema: Any, root: Schema) -> tuple[str, list[str]]:
        value = self._spelling.value(with_definitions(resolved(schema, root), root))
        # Templates print these as Python does, and so do models that read them.
        kind = schema.get("type") if isinstance(schema, Mapping) else None
        names = _PYTHON_NAMES.get(kind) if isinstance(kind, str) else None
        if names is not None and not {"enum", "const"} & schema.keys():
            value = f"({value} | {names})"
        return sequence((value, self._closing())), []

    def _closing(self) -> str:
        """Spell the tag that closes a value, with the white space before it."""
        if self._spelling.is_exact:
            return self._spell(self._tags.close.rstrip())
        return sequence((self._spelling.space, self._spell(self._mark)))

    def _text(self, schema: Any) -> tuple[str, list[str]]:
        """Spell a string up to the tag that closes it."""
        close = self._spell(self._mark)
        fixed = [schema["const"]] if "const" in schema else schema.get("enum")
        if fixed is not None:
            texts = " | ".join(quoted(text) for text in fixed if isinstance(text, str))
            return sequence((f"({texts})", self._closing())), []
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        held = ""
        if "pattern" in schema:
            held = self._spelling.pattern(schema["pattern"], low, high)
        elif low or high is not None:
            held = f"(?s:.){{{low},{'' if high is None else high}}}"
        if "format" in schema or schema.keys() & {"allOf", "not"}:
            reason = "this string cannot be held to its schema where the model writes strings bare"
            raise RequestRejected("tools", f"{reason}: {json.dumps(schema)[:200]}")
        if held:
            return self._held(held, close)
        new = self._new_name()
        free = FreeText(self._tokens, (self._mark,))
        value, more = free.up_to(new, self._mark, f"{new}_end")
        return f"({value})", [*free.rules(new), *more]

    def _held(self, pattern: str, close: str) -> tuple[str, list[str]]:
        """Spell a string that matches a pattern as a whole, and the tag that closes it."""
        new, mark = self._new_name(), escaped(self._mark)
        terminal = f"{new.upper()}_TEXT"
        # White space behind the opening tag belongs to the tag.
        first = r" & ~/[ \t\n](?s:.*)/" if self._tags.name_close[-1].isspace() else ""
        if self._tokens.first_in(self._mark) == self._mark:
            lead = escaped(self._tags.close[: -len(self._tags.close.lstrip())])
            rule = f"{terminal}: /({pattern}){lead}/ & ~/(?s:.*){mark}(?s:.*)/{first}"
            return sequence((terminal, close)), [rule]
        # A pattern would swallow a tag that is text, so the two are one pattern, and a lazy one.
        ends = escaped(self._tags.close.rstrip())
        rule = f"{terminal}: /({pattern}){ends}/ & ~/(?s:.*){mark}(?s:.+)/{first}"
        return new, [f"{new}[lazy]: {terminal}", rule]

    def _new_name(self) -> str:
        self._num_values += 1
        return f"{self._prefix}_value_{self._num_values}"


def _is_text(schema: Any) -> bool:
    """Tell whether a value is a string, or may be anything."""
    if not isinstance(schema, Mapping):
        return True
    if "const" in schema:
        return isinstance(schema["const"], str)
    if "enum" in schema:
        return all(isinstance(each, str) for each in schema["enum"])
    return schema.get("type", "string") == "string" and "properties" not in schema


def _names(barred: Sequence[str], pattern: str = "") -> str:
    """Spell names that match a pattern, if there is one, and none of those that are barred."""
    names = f"/{_ANY_NAME}/" + (f" & /{pattern}/" if pattern else "")
    return names + "".join(f" & ~/{each}/" for each in barred)
