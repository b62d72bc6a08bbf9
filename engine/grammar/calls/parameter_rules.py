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
# A pattern with anchors at its ends alone.
_ANCHORED = re.compile(r"(?P<first>\^?)(?P<body>(?:[^\^$\\]|\\.|\[\^)*)(?P<last>\$?)", re.DOTALL)
# Words of a schema by which a value may still be anything.
_SAYS_NOTHING = frozenset({"title", "description", "examples", "default"})
# Names of arguments that no schema lists.
_ANY_NAME = r"/[A-Za-z0-9_.-]{1,64}/"


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
        """Yield the rules of all arguments, in the order of the schema."""
        properties = listed_arguments(schema)
        required = schema.get("required") or ()
        parts: list[str] = []
        rules: list[str] = []
        for key, inner in properties.items():
            value, more = self._argument(quoted(key), inner, schema)
            parts.append(value if key in required else f"({value})?")
            rules += more
        if not properties and schema.get("additionalProperties", True) is not False:
            value, more = self._argument(_ANY_NAME, {}, schema)
            parts.append(f"({value})*")
            rules += more
        yield f"{name}: {' '.join(parts)}"
        yield from rules

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
        if "pattern" in schema or "format" in schema:
            return self._patterned(schema, close)
        low, high = schema.get("minLength", 0), schema.get("maxLength")
        if low or high is not None:
            return self._held(f"(?s:.){{{low},{'' if high is None else high}}}", close)
        new = self._new_name()
        free = FreeText(self._tokens, (self._mark,))
        value, more = free.up_to(new, self._mark, f"{new}_end")
        return f"({value})", [*free.rules(new), *more]

    def _patterned(self, schema: Any, close: str) -> tuple[str, list[str]]:
        """Spell a string that holds a pattern, and not the tag that closes it."""
        pattern = schema.get("pattern")
        found = _ANCHORED.fullmatch(pattern) if isinstance(pattern, str) else None
        if found is None or "format" in schema or {"minLength", "maxLength"} & schema.keys():
            reason = "this string cannot be held to its schema where the model writes strings bare"
            raise RequestRejected("tools", f"{reason}: {json.dumps(schema)[:200]}")
        body = re.sub(r"(?<!\\)/", r"\/", found["body"])
        before, behind = ("" if found[anchor] else "(?s:.*)" for anchor in ("first", "last"))
        return self._held(f"{before}({body}){behind}", close)

    def _held(self, pattern: str, close: str) -> tuple[str, list[str]]:
        """Spell a string that matches a pattern as a whole, and the tag that closes it."""
        new, mark = self._new_name(), escaped(self._mark)
        terminal = f"{new.upper()}_TEXT"
        # White space behind the opening tag belongs to the tag.
        first = r" & ~/[ \t\n](?s:.*)/" if self._tags.name_close[-1].isspace() else ""
        if self._tokens.first_in(self._mark) == self._mark:
            lead = escaped(self._tags.close[: -len(self._tags.close.lstrip())])
            rule = f"{terminal}: /{pattern}{lead}/ & ~/(?s:.*){mark}(?s:.*)/{first}"
            return sequence((terminal, close)), [rule]
        # A pattern would swallow a tag that is text, so the two are one pattern, and a lazy one.
        whole = f"{pattern}{escaped(self._tags.close.rstrip())}"
        rule = f"{terminal}: /{whole}/ & ~/(?s:.*){mark}(?s:.+)/{first}"
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
