"""Values of JSON judged by claims, where a schema leaves only few of them."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from tokenbus.engine.grammar.schema.case import identity, kind_of, kinds_of_type
from tokenbus.engine.grammar.schema.refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.grammar.schema.document import Document
    from tokenbus.engine.grammar.schema.node import Claim, Node
    from tokenbus.engine.grammar.schema.refusal import StepBudget


class Judge:
    """Judges values by the nodes of a document."""

    def __init__(
        self, document: Document, matches: Callable[[str, str, str, Node], bool], budget: StepBudget
    ) -> None:
        """Keep what tells whether a text has a `pattern` or `format`."""
        self._document = document
        self._matches = matches
        self._budget = budget
        self._listed: dict[tuple[Node, str], frozenset[Any]] = {}

    def holds(self, claim: Claim, value: Any) -> bool:
        """Tell whether a claim is true of a value."""
        return self._satisfies(claim.node, value) is claim.holds

    def _satisfies(self, node: Node, value: Any) -> bool:
        self._budget.spend(node.path)
        if node.verdict is not None:
            return node.verdict
        for word in ("unevaluatedItems", "unevaluatedProperties"):
            if word in node.words and isinstance(value, list | dict):
                raise refusal(word, node.path, "not supported beside values that are listed")
        return all(
            (
                self._of_any(node, value),
                self._in_place(node, value),
                self._of_number(node, value),
                self._of_text(node, value),
                self._of_array(node, value),
                self._of_object(node, value),
            )
        )

    def _of_any(self, node: Node, value: Any) -> bool:
        if "type" in node.words and kind_of(value) not in kinds_of_type(node.words["type"]):
            return False
        listed = [word for word in ("enum", "const") if word in node.words]
        own = identity(value) if listed else None
        return all(own in self._identities(node, word) for word in listed)

    def _identities(self, node: Node, word: str) -> frozenset[Any]:
        """Return what is equal for the values that a keyword lists; thousands may be asked for."""
        found = self._listed.get((node, word))
        if found is None:
            found = frozenset(map(identity, node.words[word]))
            self._listed[node, word] = found
        return found

    def _in_place(self, node: Node, value: Any) -> bool:
        words, satisfies = node.words, self._satisfies
        if "$ref" in words and not satisfies(self._document.target(node), value):
            return False
        if not all(satisfies(inner, value) for inner in words.get("allOf", ())):
            return False
        if "anyOf" in words and not any(satisfies(inner, value) for inner in words["anyOf"]):
            return False
        if "oneOf" in words and sum(satisfies(inner, value) for inner in words["oneOf"]) != 1:
            return False
        if "not" in words and satisfies(words["not"], value):
            return False
        if "if" in words:
            branch = words.get("then" if satisfies(words["if"], value) else "else")
            return branch is None or satisfies(branch, value)
        return True

    def _of_number(self, node: Node, value: Any) -> bool:
        if kind_of(value) not in ("integer", "fraction"):
            return True
        words, exact = node.words, Fraction(value)
        return (
            ("minimum" not in words or exact >= Fraction(words["minimum"]))
            and ("maximum" not in words or exact <= Fraction(words["maximum"]))
            and ("exclusiveMinimum" not in words or exact > Fraction(words["exclusiveMinimum"]))
            and ("exclusiveMaximum" not in words or exact < Fraction(words["exclusiveMaximum"]))
            and (
                "multipleOf" not in words
                or (Fraction(repr(value)) / Fraction(repr(words["multipleOf"]))).denominator == 1
            )
        )

    def _of_text(self, node: Node, value: Any) -> bool:
        if not isinstance(value, str):
            return True
        words = node.words
        if not words.get("minLength", 0) <= len(value) <= words.get("maxLength", len(value)):
            return False
        return all(
            self._matches(word, words[word], value, node)
            for word in ("pattern", "format")
            if word in words
        )

    def _of_array(self, node: Node, value: Any) -> bool:
        if not isinstance(value, list):
            return True
        words = node.words
        if not words.get("minItems", 0) <= len(value) <= words.get("maxItems", len(value)):
            return False
        if "uniqueItems" in words and len(set(map(identity, value))) < len(value):
            return False
        prefix = words.get("prefixItems", ())
        for index, item in enumerate(value):
            schema = prefix[index] if index < len(prefix) else words.get("items")
            if schema is not None and not self._satisfies(schema, item):
                return False
        if "contains" in words:
            num = sum(self._satisfies(words["contains"], item) for item in value)
            return bool(words.get("minContains", 1) <= num <= words.get("maxContains", num))
        return True

    def _of_object(self, node: Node, value: Any) -> bool:
        if not isinstance(value, dict):
            return True
        words = node.words
        num = len(value)
        if not words.get("minProperties", 0) <= num <= words.get("maxProperties", num):
            return False
        needed = list(words.get("required", ()))
        for key, keys in words.get("dependentRequired", {}).items():
            needed += keys if key in value else ()
        if any(key not in value for key in needed):
            return False
        for key, schema in words.get("dependentSchemas", {}).items():
            if key in value and not self._satisfies(schema, value):
                return False
        if "propertyNames" in words:
            names = words["propertyNames"]
            if not all(self._satisfies(names, key) for key in value):
                return False
        return all(self._field(node, key, inner) for key, inner in value.items())

    def _field(self, node: Node, key: str, inner: Any) -> bool:
        words = node.words
        schemas = [words["properties"][key]] if key in words.get("properties", {}) else []
        for pattern, schema in words.get("patternProperties", {}).items():
            if self._matches("pattern", pattern, key, node):
                schemas.append(schema)
        if not schemas and "additionalProperties" in words:
            schemas.append(words["additionalProperties"])
        return all(self._satisfies(schema, inner) for schema in schemas)
