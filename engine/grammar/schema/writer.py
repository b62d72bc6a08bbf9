"""Schemas written from claims, in the forms that the library enforces.

Whatever is claimed of one value becomes one schema, or a definition where it recurs. What is
written has no combination left for the library to make, apart from patterns of one text.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.engine.grammar.schema.case import NUMBER, SchemaCase, identity, kind_of
from tokenbus.engine.grammar.schema.expansion import Expansion
from tokenbus.engine.grammar.schema.judge import Judge
from tokenbus.engine.grammar.schema.lists import Lists
from tokenbus.engine.grammar.schema.node import Claim, Claims, all_of
from tokenbus.engine.grammar.schema.numbers import number_schemas
from tokenbus.engine.grammar.schema.objects import Objects
from tokenbus.engine.grammar.schema.refusal import pointer, refusal
from tokenbus.engine.grammar.schema.texts import Texts

if TYPE_CHECKING:
    from tokenbus.engine.grammar.schema.document import Document
    from tokenbus.engine.grammar.schema.refusal import StepBudget

_ORDER = ("null", "boolean", "integer", "number", "string", "array", "object")
# How deep emptiness is looked for, and values of one place that are listed.
_EMPTY_DEPTH, _MAX_VALUES = 4, 64
_MAX_NESTING = 150


class SchemaWriter:
    """Writes one document's schema."""

    def __init__(self, document: Document, budget: StepBudget, *, is_watched: bool = False) -> None:
        """Keep whether outputs will be followed, so that lists can be marked."""
        self.is_watched = is_watched
        self.budget = budget
        self.texts = Texts(budget)
        self.judge = Judge(document, self.texts.matches, self.budget)
        self._document = document
        self._expansion = Expansion(document, self.is_empty, self.budget)
        self._lists = Lists(self)
        self._objects = Objects(self)
        self._names: dict[Claims, str] = {}
        self._written: dict[Claims, Any] = {}
        self._open: set[Claims] = set()
        self._recurs: set[Claims] = set()
        self._asking: set[Claims] = set()
        self._empty: dict[Claims, bool] = {}

    def write(self, path: tuple[str, ...] = ()) -> Any:
        """Return the schema of the document, or of a part of it. Raises: GrammarRejected."""
        claims = all_of([Claim(self._document.node(path))])
        root = self.schema(claims)
        if claims in self._recurs:
            root = {"$ref": f"#/$defs/{self._name(claims)}"}
        definitions = {
            self._name(one): self._written[one] for one in self._written if one in self._recurs
        }
        if definitions and isinstance(root, dict):
            root = {**root, "$defs": definitions}
        return root

    def schema(self, claims: Claims) -> Any:
        """Return a schema for claims: the same one, by reference, where they come again."""
        if not claims:
            return True
        if claims in self._open or (claims in self._written and self._is_large(claims)):
            self._recurs.add(claims)
            return {"$ref": f"#/$defs/{self._name(claims)}"}
        if claims in self._written:
            return self._written[claims]
        if len(self._open) > _MAX_NESTING:
            place = pointer(claims[0].node.path)
            raise refusal("$ref", claims[0].node.path, f"{place} is nested too deep")
        self._open.add(claims)
        try:
            self._written[claims] = self._of_cases(self.cases(claims))
        finally:
            self._open.discard(claims)
        if claims in self._recurs:
            return {"$ref": f"#/$defs/{self._name(claims)}"}
        return self._written[claims]

    def cases(self, claims: Claims) -> list[SchemaCase]:
        """Return the ways in which claims can be true."""
        return self._expansion.cases(claims)

    def _is_large(self, claims: Claims) -> bool:
        written = self._written[claims]
        return isinstance(written, dict) and len(json.dumps(written)) > 80

    def _name(self, claims: Claims) -> str:
        return self._names.setdefault(claims, f"d{len(self._names)}")

    def _of_cases(self, cases: list[SchemaCase]) -> Any:
        options: list[Any] = []
        for case in cases:
            for option in self._options(case):
                if option not in options:
                    options.append(option)
        if True in options:
            return True
        if not options:
            return False
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _options(self, case: SchemaCase) -> list[Any]:
        """Return schemas of a case, one of which a value satisfies."""
        self.budget.spend(_path(case))
        if case.values is not None:
            return self._listed(case)
        for kind in sorted(case.kinds & set(case.blocked)):
            raise case.blocked[kind]
        case = self._without_excluded(case)
        by_kind = self._by_kind(case)
        if len(by_kind) == 6 and all(keywords == [{}] for keywords in by_kind.values()):
            return [True]
        single = {kind: found[0] for kind, found in by_kind.items() if len(found) == 1}
        plain = {kind: keywords for kind, keywords in single.items() if "enum" not in keywords}
        whole: list[Any] = []
        if plain:
            names = [kind for kind in _ORDER if kind in plain]
            merged: dict[str, Any] = {"type": names[0] if len(names) == 1 else names}
            for kind in names:
                merged |= plain[kind]
            whole.append(merged)
        for kind, found in by_kind.items():
            if kind not in plain:
                whole += [{"type": kind, **one} if "enum" not in one else one for one in found]
        return whole

    def _without_excluded(self, case: SchemaCase) -> SchemaCase:
        """Return a case without the lists and objects that are left out of it.

        Raises: GrammarRejected unless these are empty, or satisfy the claims in another way.
        """
        for value in case.excluded:
            if not isinstance(value, list | dict) or kind_of(value) not in case.kinds:
                continue
            if value == []:
                case = case.counted("num_items", "array", least=1)
            elif value == {}:
                case = case.counted("num_keys", "object", least=1)
            elif not all(self.judge.holds(claim, value) for claim in case.claims):
                reason = "a list or an object cannot be left out of others"
                raise refusal("not", _path(case), reason)
        return case

    def _listed(self, case: SchemaCase) -> list[Any]:
        different: dict[Any, Any] = {}
        for value in case.values or ():
            if kind_of(value) in case.kinds:
                different.setdefault(identity(value), value)
        kept = [
            value
            for value in different.values()
            if all(self.judge.holds(claim, value) for claim in case.claims)
        ]
        if not kept:
            return []
        return [{"const": kept[0]} if len(kept) == 1 else {"enum": kept}]

    def _by_kind(self, case: SchemaCase) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        kinds = case.kinds
        if "null" in kinds and None not in case.excluded:
            found["null"] = [{}]
        if "boolean" in kinds:
            left = [one for one in (True, False) if not _among(one, case.excluded)]
            if left:
                found["boolean"] = [{}] if len(left) == 2 else [{"enum": left}]
        if kinds & NUMBER:
            name = "number" if "fraction" in kinds else "integer"
            found[name] = number_schemas(case, _path(case))
        if "string" in kinds:
            found["string"] = self.texts.schemas(case)
        if "array" in kinds:
            found["array"] = self._lists.schemas(case)
        if "object" in kinds:
            found["object"] = self._objects.schemas(case)
        return {kind: keywords for kind, keywords in found.items() if keywords}

    def is_empty(self, claims: Claims) -> bool:
        """Tell whether nothing satisfies claims, as far as can be seen."""
        if claims in self._empty:
            return self._empty[claims]
        if claims in self._asking or len(self._asking) >= _EMPTY_DEPTH or not claims:
            return False
        self._asking.add(claims)
        try:
            found = all(self._is_case_empty(case) for case in self.cases(claims))
        finally:
            self._asking.discard(claims)
        # What was found below another question may depend on how deep that was.
        if found or not self._asking:
            self._empty[claims] = found
        return found

    def _is_case_empty(self, case: SchemaCase) -> bool:
        if case.values is not None:
            return not self._listed(case)
        kinds = set(case.kinds)
        if None in case.excluded:
            kinds.discard("null")
        if "string" in kinds and self.texts.is_empty(case):
            kinds.discard("string")
        if "array" in kinds and self._lists.is_empty(case):
            kinds.discard("array")
        if "object" in kinds and self._objects.is_empty(case):
            kinds.discard("object")
        return not kinds

    def values(self, claims: Claims, most: int = _MAX_VALUES) -> list[Any] | None:
        """Return all values that satisfy claims, None if they are many."""
        found: list[Any] = []
        if not claims or any(claim.verdict is False for claim in claims):
            return found if claims else None
        for case in self.cases(claims):
            if case.values is not None:
                for option in self._listed(case):
                    found += option.get("enum", [option.get("const")])
            elif case.kinds <= {"null", "boolean"}:
                candidates = [None, True, False]
                found += [
                    one
                    for one in candidates
                    if kind_of(one) in case.kinds and not _among(one, case.excluded)
                ]
            else:
                return None
        unique = list({identity(one): one for one in found}.values())
        return unique if len(unique) <= most else None


def _among(value: Any, values: list[Any]) -> bool:
    own = identity(value)
    return any(identity(one) == own for one in values)


def _path(case: SchemaCase) -> tuple[str, ...]:
    return min((claim.node.path for claim in case.claims), default=())
