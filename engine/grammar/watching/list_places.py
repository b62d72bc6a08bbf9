"""Places of an output, by what its schema says there: in which lists no item may come twice.

A schema that is written for the grammar library (`schema/writer.py`) has marked these lists. An
output is followed with all of the schema's options that its place may belong to. Where a list is
marked in some of them alone, nobody can tell which it is, and the schema is refused.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.patterns.automaton import Automaton
from tokenbus.engine.grammar.patterns.language import Languages
from tokenbus.engine.grammar.patterns.pattern_languages import PatternLanguages
from tokenbus.engine.grammar.patterns.pattern_tree import PatternRefused, read_pattern
from tokenbus.engine.grammar.schema.keywords import MARK, MARKED_AT, mark_of

# Places that are told apart in one schema.
_MAX_PLACES = 5_000
_TEXT_BOUNDS = {"pattern", "allOf", "maxLength"}
_NUMBER_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_NUMBERS = {"integer", "number"}

# Options of one place, as numbers in order; none where no list inside is marked.
Place = tuple[int, ...]


class _OfPattern(str):
    """The keys of one pattern, of none by the empty one; as a step into an object."""

    __slots__ = ()


# What leads inside: a listed key, the keys of a pattern or any other ones, or the index of an item.
_Step = str | int | None


def has_marks(schema: Any) -> bool:
    """Tell whether a schema has a marked list anywhere."""
    pending = [schema]
    while pending:
        one = pending.pop()
        if isinstance(one, dict):
            if str(one.get(MARK, "")).startswith(MARKED_AT):
                return True
            pending += one.values()
        elif isinstance(one, list):
            pending += one
    return False


class ListPlaces:
    """The places of one schema, found as outputs come to them."""

    def __init__(self, schema: Any) -> None:
        """Read a schema that the writer has made."""
        self._definitions = schema.get("$defs", {}) if isinstance(schema, dict) else {}
        # Masks of one grammar are made by several threads.
        self._lock = Lock()
        self._options: list[dict[str, Any]] = []
        self._numbers: dict[int, int] = {}
        self._inside: dict[tuple[Place, type, _Step], Place] = {}
        self._keys: dict[str, Automaton | None] = {}
        self._leads: dict[int, bool] = {}
        self.root = self._leading(self._resolved([schema]))

    def of_key(self, place: Place, key: str) -> Place:
        """Return the place of a key's value in an object."""
        if any(key in self._options[one].get("properties", ()) for one in place):
            return self._found(place, key)
        for pattern in self._told_apart(place):
            keys = self._keys[pattern]
            if keys is not None and keys.accepts(key):
                return self._found(place, pattern)
        return self._found(place, _OfPattern() if self._told_apart(place) else None)

    def of_item(self, place: Place, index: int) -> Place:
        """Return the place of an item in a list."""
        num = max((len(self._options[one].get("prefixItems", ())) for one in place), default=0)
        return self._found(place, min(index, num))

    def is_marked(self, place: Place) -> bool:
        """Tell whether no item may come twice in a list that stands at a place."""
        lists = self._of_kind(place, "array")
        return bool(lists) and all(MARK in one for one in lists)

    def is_free(self, place: Place) -> bool:
        """Tell whether each beginning of an item in such a list has endless continuations."""
        return all(map(_is_endless, self._items(place)))

    def is_spelled_once(self, place: Place) -> bool:
        """Tell whether equal items of such a list are the same text."""
        seen, pending = set[int](), [self._number(one) for one in self._items(place)]
        while pending:
            number = pending.pop()
            if number in seen:
                continue
            seen.add(number)
            option = self._options[number]
            if not _is_spelled_once(option):
                return False
            pending += self._resolved(list(_inner(option)))
        return True

    def check(self) -> None:
        """Raise for a list of which nobody can tell whether it is a marked one.

        Raises: GrammarRejected with the place of its keyword.
        """
        seen, pending = {self.root}, [self.root]
        while pending:
            place = pending.pop()
            lists = self._of_kind(place, "array")
            marks = [one[MARK] for one in lists if MARK in one]
            if marks and len(marks) < len(lists):
                reason = "beside another list that the same value may be"
                raise _refused(marks[0], reason)
            keys = {key for one in place for key in self._options[one].get("properties", ())}
            num = max((len(self._options[one].get("prefixItems", ())) for one in place), default=0)
            others = self._told_apart(place)
            steps: list[_Step] = [*others, _OfPattern()] if others else [None]
            for step in (*sorted(keys), *steps, *range(num + 1)):
                found = self._found(place, step)
                if found and found not in seen:
                    seen.add(found)
                    pending.append(found)
            if len(seen) > _MAX_PLACES:
                raise _refused((marks or [mark_of("#")])[0], "in a schema with too many places")

    def _items(self, place: Place) -> list[dict[str, Any]]:
        lists = self._of_kind(place, "array")
        inner = [one.get("items", True) for one in lists]
        inner += [schema for one in lists for schema in one.get("prefixItems", ())]
        return [self._options[number] for number in self._resolved(inner)]

    def _of_kind(self, place: Place, kind: str) -> list[dict[str, Any]]:
        return [self._options[one] for one in place if _allows(self._options[one], kind)]

    def _told_apart(self, place: Place) -> list[_OfPattern]:
        """Return the patterns of a place's keys if it is known which key has which of them.

        No key has two patterns of one option, as they are written.
        """
        options = [self._options[one].get("patternProperties", {}) for one in place]
        own = [patterns for patterns in options if patterns]
        if len(own) != 1:
            return []
        for pattern in own[0]:
            if pattern not in self._keys:
                self._keys[pattern] = _automaton(pattern)
        if any(self._keys[pattern] is None for pattern in own[0]):
            return []
        return list(map(_OfPattern, own[0]))

    def _found(self, place: Place, step: _Step) -> Place:
        known = self._inside.get((place, type(step), step))
        if known is None:
            inner: list[Any] = []
            if isinstance(step, int):
                for one in self._of_kind(place, "array"):
                    prefix = one.get("prefixItems", ())
                    inner.append(prefix[step] if step < len(prefix) else one.get("items", True))
            else:
                for one in self._of_kind(place, "object"):
                    inner += _of_key(one, step)
            known = self._inside[place, type(step), step] = self._leading(self._resolved(inner))
        return known

    def _leading(self, numbers: set[int]) -> Place:
        """Return options as a place, none if no list inside of them is marked."""
        return tuple(sorted(numbers)) if any(map(self._leads_to_mark, numbers)) else ()

    def _leads_to_mark(self, number: int) -> bool:
        if number not in self._leads:
            seen, pending = set[int](), [number]
            while pending:
                one = pending.pop()
                if one not in seen:
                    seen.add(one)
                    pending += self._resolved(list(_inner(self._options[one])))
            self._leads[number] = any(MARK in self._options[one] for one in seen)
        return self._leads[number]

    def _resolved(self, schemas: list[Any]) -> set[int]:
        """Return the options of schemas, references followed and choices taken apart."""
        found, seen, pending = set[int](), set[int](), list(schemas)
        while pending:
            schema = pending.pop()
            if schema is False or id(schema) in seen:
                continue
            if not isinstance(schema, dict):
                found.add(self._number(_ANYTHING))
                continue
            seen.add(id(schema))
            if "$ref" in schema:
                pending.append(self._definitions[schema["$ref"].removeprefix("#/$defs/")])
            elif "anyOf" in schema:
                pending += schema["anyOf"]
            else:
                found.add(self._number(schema))
        return found

    def _number(self, option: dict[str, Any]) -> int:
        with self._lock:
            if id(option) not in self._numbers:
                self._options.append(option)
                self._numbers[id(option)] = len(self._options) - 1
            return self._numbers[id(option)]


_ANYTHING: dict[str, Any] = {}


def _refused(mark: str, reason: str) -> GrammarRejected:
    place = mark.removeprefix(MARKED_AT)
    return GrammarRejected("grammar", f"JSON schema keyword 'uniqueItems' at {place}: {reason}")


def _allows(option: dict[str, Any], kind: str) -> bool:
    if "enum" in option or "const" in option:
        wanted = list if kind == "array" else dict
        return any(isinstance(one, wanted) for one in option.get("enum", [option.get("const")]))
    types = option.get("type")
    return types is None or kind == types or (isinstance(types, list) and kind in types)


def _of_key(option: dict[str, Any], step: str | None) -> list[Any]:
    """Return the schemas that the values of keys may have, of any that is not listed by None."""
    if "enum" in option or "const" in option:
        return [True]
    patterns, rest = option.get("patternProperties", {}), option.get("additionalProperties", True)
    if isinstance(step, _OfPattern):
        return [patterns.get(step, rest)]
    listed = option.get("properties", {})
    if step is not None and step in listed:
        return [listed[step]]
    return [*patterns.values(), rest]


def _automaton(pattern: str) -> Automaton | None:
    """Return the automaton of a pattern as the writer spells it, None if it is not read back."""
    languages = Languages()
    try:
        tree = read_pattern(pattern.replace("(?s:.)", r"[\s\S]"))
        return Automaton(languages, PatternLanguages(languages).of(tree))
    except PatternRefused:
        return None


def _inner(option: dict[str, Any]) -> list[Any]:
    inner: list[Any] = [*option.get("properties", {}).values()]
    if _allows(option, "object"):
        inner += _of_key(option, None)
    if _allows(option, "array"):
        inner += [*option.get("prefixItems", ()), option.get("items", True)]
    return [one for one in inner if isinstance(one, dict)]


def _is_endless(option: dict[str, Any]) -> bool:
    types = option.get("type", [])
    names = {types} if isinstance(types, str) else set(types)
    if not names or not names <= _NUMBERS | {"string"} or {"enum", "const"} & set(option):
        return False
    bounds = (_TEXT_BOUNDS if "string" in names else set()) | (
        _NUMBER_BOUNDS if names & _NUMBERS else set()
    )
    return not bounds & set(option)


def _is_spelled_once(option: dict[str, Any]) -> bool:
    if "enum" in option or "const" in option:
        listed = option.get("enum", [option.get("const")])
        return all(one is None or isinstance(one, bool | str) for one in listed)
    types = option.get("type", [])
    names = {types} if isinstance(types, str) else set(types)
    if not names or names & _NUMBERS:
        return False
    if "array" in names and "items" not in option:
        return False
    is_closed = option.get("additionalProperties") is False and "patternProperties" not in option
    return "object" not in names or is_closed
