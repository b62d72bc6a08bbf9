"""The document of a schema: read into nodes, each keyword checked, each reference resolved.

It is one noun: a keyword is checked where it is read, with the names that references use.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urldefrag, urljoin

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.schema.case import identity, kind_of, kinds_of_type
from tokenbus.engine.grammar.schema.keywords import (
    ASSERTIONS,
    SCHEMA,
    SCHEMA_LIST,
    SCHEMA_MAP,
    why_refused,
)
from tokenbus.engine.grammar.schema.node import Node
from tokenbus.engine.grammar.schema.refusal import pointer, refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.grammar.schema.refusal import Path, StepBudget

# Deeper schemas are an attack on the stack rather than a description of data.
MAX_DEPTH = 64
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_COUNTS = frozenset(
    [
        "maxLength", "minLength", "maxItems", "minItems", "maxContains", "minContains",
        "maxProperties", "minProperties",
    ]
)  # fmt: skip
_NUMBERS = frozenset({"multipleOf", "maximum", "exclusiveMaximum", "minimum", "exclusiveMinimum"})
# Keywords that hold values, in which nothing is a schema.
_VALUES = frozenset({"default", "enum", "const", "example", "examples"})
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
# Drafts in which a reference stands for its whole schema.
_BOUNDS = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))
# Keywords that say nothing without another one.
_NOTHING_ALONE = (
    ("then", "if"),
    ("else", "if"),
    ("minContains", "contains"),
    ("maxContains", "contains"),
)
# Keywords whose value has a form that is checked at once, and what it must be.
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "enum": (lambda value: isinstance(value, list), "must be a list of values"),
    "required": (
        lambda value: isinstance(value, list) and all(isinstance(key, str) for key in value),
        "must be a list of keys",
    ),
    "dependentRequired": (lambda value: isinstance(value, dict), "must be an object of key lists"),
    "pattern": (lambda value: isinstance(value, str), "must be a text"),
    "format": (lambda value: isinstance(value, str), "must be a text"),
    "uniqueItems": (lambda value: isinstance(value, bool), "must be true or false"),
    # Of validators in JavaScript, where no value of JSON is an instance of these.
    "instanceof": (
        lambda value: value in ("Function", "RegExp", "Date", "Promise", "Buffer", "Uint8Array"),
        "names a class that values of JSON may have; use type",
    ),
}
_KNOWN_DIALECTS = ("json-schema.org", "spec.openapis.org")
_OLD_DRAFTS = ("draft-03", "draft-04", "draft-05", "draft-06", "draft-07")


class Document:
    """A schema and all that lie in it."""

    def __init__(self, schema: Any, budget: StepBudget) -> None:
        """Read a schema, of whose parts each is a step.

        Raises: GrammarRejected that names the first keyword which would not be enforced.
        """
        declared = schema.get("$schema") if isinstance(schema, dict) else None
        if declared is not None and not any(word in str(declared) for word in _KNOWN_DIALECTS):
            raise refusal("$schema", (), f"{declared!r} is not known; leave it out")
        self._is_old = any(draft in str(declared) for draft in _OLD_DRAFTS)
        self._schema = schema
        self._budget = budget
        self._num_nodes = 0
        self._anchors: dict[tuple[str, str], Node] = {}
        self._dynamic: dict[str, list[Node]] = {}
        self._resources: dict[str, Path] = {"": ()}
        self._targets: dict[Node, Node] = {}
        self._by_path: dict[Path, Node] = {}
        self._read(schema, (), "")
        for node in list(self._by_path.values()):
            self._check_references(node)

    def node(self, path: Path) -> Node:
        """Return the schema at a place. Raises: KeyError."""
        return self._by_path[path]

    def target(self, node: Node) -> Node:
        """Return what the reference of a node refers to."""
        return self._targets[node]

    def __iter__(self) -> Any:
        """Iterate over all nodes."""
        return iter(self._by_path.values())

    def _read(self, schema: Any, path: Path, base: str) -> Node:
        if len(path) > 2 * MAX_DEPTH:
            raise GrammarRejected(
                "grammar", f"JSON schema at {pointer(path)}: nested deeper than {MAX_DEPTH}"
            )
        self._budget.spend(path)
        self._num_nodes += 1
        node = Node(self._num_nodes, path, base)
        self._by_path[path] = node
        if isinstance(schema, bool):
            node.verdict = schema
            return node
        if not isinstance(schema, dict):
            raise GrammarRejected(
                "grammar", f"JSON schema at {pointer(path)} must be an object or a boolean"
            )
        self._name(node, schema)
        is_reference = self._is_old and "$ref" in schema
        for word, value in schema.items():
            if word in ASSERTIONS:
                read = self._value(node, word, value)
                if not is_reference or word == "$ref":
                    node.words[word] = read
            elif (reason := why_refused(word)) and not (word == "nullable" and value is False):
                raise refusal(word, path, reason)
        _modernise(node)
        if not node.words:
            node.verdict = True
        return node

    def _name(self, node: Node, schema: dict[str, Any]) -> None:
        """Note the names by which references reach a node."""
        own = schema.get("$id", schema.get("id") if self._is_old else None)
        if isinstance(own, str) and not (self._is_old and "$ref" in schema):
            if own.startswith("#"):
                self._anchors[node.base, own[1:]] = node
            else:
                node.base = urldefrag(urljoin(node.base, own))[0]
                self._resources.setdefault(node.base, node.path)
        if not node.path:
            self._resources[node.base] = ()
        for word in ("$anchor", "$dynamicAnchor"):
            name = schema.get(word)
            if isinstance(name, str):
                self._anchors[node.base, name] = node
                if word == "$dynamicAnchor":
                    self._dynamic.setdefault(name, []).append(node)
        if schema.get("$recursiveAnchor") is True:
            self._dynamic.setdefault("", []).append(node)

    def _value(self, node: Node, word: str, value: Any) -> Any:
        """Return the value of a keyword, schemas in it as nodes."""
        path = node.path
        if word in SCHEMA_MAP:
            if not isinstance(value, dict):
                raise refusal(word, path, "must be an object of schemas")
            return {
                name: self._read(inner, (*path, word, name), node.base)
                for name, inner in value.items()
            }
        if word in SCHEMA_LIST or (word == "items" and isinstance(value, list)):
            if not isinstance(value, list):
                raise refusal(word, path, "must be a list of schemas")
            if not value and word in ("anyOf", "oneOf", "allOf"):
                raise refusal(word, path, "must have at least one schema")
            return [
                self._read(inner, (*path, word, str(index)), node.base)
                for index, inner in enumerate(value)
            ]
        if word in SCHEMA:
            return self._read(value, (*path, word), node.base)
        if word == "dependencies":
            return self._dependencies(node, value)
        _check_plain(word, value, path)
        return value

    def _dependencies(self, node: Node, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise refusal("dependencies", node.path, "must be an object of schemas or key lists")
        read: dict[str, Any] = {}
        for name, inner in value.items():
            if isinstance(inner, str | list):
                keys = [inner] if isinstance(inner, str) else inner
                _check_plain("required", keys, (*node.path, "dependencies", name))
                read[name] = keys
            else:
                read[name] = self._read(inner, (*node.path, "dependencies", name), node.base)
        return read

    def _at(self, path: Path, base: str) -> Node | None:
        """Return the schema at a place, which may lie in a keyword that nobody knows."""
        if path in self._by_path or set(path) & _VALUES:
            return self._by_path.get(path)
        found: Any = self._schema
        for token in path:
            if isinstance(found, dict) and token in found:
                found = found[token]
            else:
                return None
        if not isinstance(found, dict | bool):
            return None
        known = set(self._by_path)
        read = self._read(found, path, base)
        for inner in [one for place, one in self._by_path.items() if place not in known]:
            self._check_references(inner)
        return read

    def _check_references(self, node: Node) -> None:
        for word in _REFERENCES:
            if word in node.words:
                self._targets[node] = self._resolve(node, word)
                node.words["$ref"] = node.words.pop(word)
                if len(node.words) == 1:
                    node.alias = self._targets[node]

    def _resolve(self, node: Node, word: str) -> Node:
        reference = node.words[word]
        if not isinstance(reference, str):
            raise refusal(word, node.path, "must be a text")
        if "$ref" in node.words and word != "$ref":
            raise refusal(word, node.path, "not beside another reference")
        joined, fragment = urldefrag(urljoin(node.base, reference))
        if reference.startswith("#"):
            joined, fragment = node.base, reference[1:]
        if joined not in self._resources:
            raise refusal(word, node.path, f"{reference!r} is outside of this schema")
        fragment = unquote(fragment)
        found = self._anchors.get((joined, fragment))
        if not fragment or fragment.startswith("/"):
            tokens = fragment.split("/")[1:]
            path = tuple(token.replace("~1", "/").replace("~0", "~") for token in tokens)
            found = self._at((*self._resources[joined], *path), node.base)
        if found is None:
            raise refusal(word, node.path, f"{reference} is not a schema")
        name = "" if word == "$recursiveRef" else fragment
        is_dynamic = word != "$ref" and found in self._dynamic.get(name, ())
        if is_dynamic and len(self._dynamic[name]) > 1:
            raise refusal(word, node.path, "more than one schema has its dynamic anchor")
        return found


def _check_plain(word: str, value: Any, path: Path) -> None:
    """Raise unless the value of a keyword without schemas has the form that the keyword wants."""
    is_flag = isinstance(value, bool)
    if word in _COUNTS:
        is_whole = isinstance(value, int | float) and not is_flag
        if not is_whole or value < 0 or value != int(value):
            raise refusal(word, path, "must be a count")
    elif word in _NUMBERS and not (is_flag and word.startswith("exclusive")):
        _check_number(word, value, path)
    elif word == "type":
        _check_type(value, path)
    elif word == "dependentRequired" and isinstance(value, dict):
        for keys in value.values():
            _check_plain("required", keys, path)
    elif word in _FORMS and not _FORMS[word][0](value):
        raise refusal(word, path, _FORMS[word][1])


def _check_type(value: Any, path: Path) -> None:
    names = value if isinstance(value, list) else [value]
    if any(not isinstance(name, str) for name in names):
        raise refusal("type", path, "must be a name or a list of names")
    if not names or any(name not in TYPES for name in names):
        raise refusal("type", path, f"{value!r} is not one of {', '.join(TYPES)}")


def _check_number(word: str, value: Any, path: Path) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not _is_finite(value):
        raise refusal(word, path, "must be a number")
    # The library keeps bounds as doubles.
    is_exact = isinstance(value, float) or value == 2**63 - 1
    if not is_exact and (abs(value) >= 2**1023 or int(float(value)) != value):
        raise refusal(word, path, "more digits than a bound may have")
    if word == "multipleOf" and value <= 0:
        raise refusal(word, path, "must be more than 0")


def _is_finite(value: float) -> bool:
    return isinstance(value, int) or math.isfinite(value)


def _modernise(node: Node) -> None:
    """Give keywords of older drafts the spelling of draft 2020-12."""
    words = node.words
    words.pop("$defs", None)
    words.pop("definitions", None)
    if isinstance(words.get("items"), list):
        if "prefixItems" in words:
            raise refusal("items", node.path, "must be one schema beside prefixItems")
        words["prefixItems"] = words.pop("items")
        if "additionalItems" in words:
            words["items"] = words["additionalItems"]
    words.pop("additionalItems", None)
    _split_dependencies(words)
    for exclusive, bound in _BOUNDS:
        if isinstance(words.get(exclusive), bool) and words.pop(exclusive) and bound in words:
            words[exclusive] = words.pop(bound)
    if "const" in words:
        words["const"] = [words["const"]]
    if words.pop("instanceof", None):
        words["const"] = []
    _leave_out(words)
    _list_at_once(words)


def _list_at_once(words: dict[str, Any]) -> None:
    """Make one `enum` of alternatives that only list values: there may be thousands of them."""
    for word in ("anyOf", "oneOf"):
        listed = [_values_alone(inner) for inner in words.get(word, ())]
        if "enum" in words or not listed or None in listed:
            continue
        times = Counter(one for values in listed for one in values or ())
        found = {one: value for values in listed for one, value in (values or {}).items()}
        del words[word]
        words["enum"] = [
            value for one, value in found.items() if word == "anyOf" or times[one] == 1
        ]


def _values_alone(node: Node) -> dict[Any, Any] | None:
    """Return the values of a schema that lists them, by what is equal; None if it says more."""
    word = "const" if "const" in node.words else "enum"
    if word not in node.words or node.words.keys() - {"type", word}:
        return None
    kinds = kinds_of_type(node.words.get("type", list(TYPES)))
    return {identity(value): value for value in node.words[word] if kind_of(value) in kinds}


def _leave_out(words: dict[str, Any]) -> None:
    """Leave out keywords that say nothing here."""
    if words.get("uniqueItems") is False:
        del words["uniqueItems"]
    for word, needed in _NOTHING_ALONE:
        if word in words and needed not in words:
            del words[word]


def _split_dependencies(words: dict[str, Any]) -> None:
    for name, value in words.pop("dependencies", {}).items():
        word = "dependentSchemas" if isinstance(value, Node) else "dependentRequired"
        words[word] = {**words.get(word, {}), name: value}
