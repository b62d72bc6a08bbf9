"""Objects: what a case says of their keys and values, as keywords.

It is one noun: keys are listed, told apart by pattern, counted and written for one object.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.patterns.pattern_tree import PatternRefused
from tokenbus.engine.grammar.schema.node import Claim, Claims, Node, all_of, contradict
from tokenbus.engine.grammar.schema.refusal import refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.engine.grammar.patterns.language import Term
    from tokenbus.engine.grammar.schema.case import Fields, SchemaCase
    from tokenbus.engine.grammar.schema.texts import Combiner

# Sets of optional keys that are spelled out where keys are counted; keys of a pattern that are
# listed instead; patterns that are told apart in one object.
_MAX_SETS, _MAX_LISTED, _MAX_PATTERNS = 128, 64, 12
# Keys that `propertyNames` lists.
_MAX_NAMED = 2_000


class _Keys:
    """Claims on values by key: those listed, those of a pattern, and all others."""

    def __init__(self) -> None:
        self.listed: dict[str, Claims | None] = {}
        self.patterns: dict[str, Claims | None] = {}
        self.rest: Claims | None = ()


class Objects:
    """Writes the objects of cases. Claims that are None stand for a key that may not be there."""

    def __init__(self, writer: Combiner) -> None:
        self._writer = writer

    def schemas(self, case: SchemaCase) -> list[dict[str, Any]]:
        """Return keywords of the objects of a case; none if nothing is left."""
        keys = self._keys(case)
        if _is_overfull(case) or any(self._is_out(keys.listed[key]) for key in case.required):
            return []
        found = [
            self._keywords(keys, required, least, most, case)
            for required, least, most in self._counted(keys, case)
        ]
        return [keywords for keywords in found if keywords is not None]

    def is_empty(self, case: SchemaCase) -> bool:
        """Tell whether there is no such object, as far as can be seen."""
        return _is_overfull(case) or any(
            contradict(claims) or self._writer.is_empty(claims)
            for key in case.required
            if (claims := self._plain_claims(case, key))
        )

    def _plain_claims(self, case: SchemaCase, key: str) -> Claims:
        """Return claims on the value of a key by what lists it, or leaves no pattern."""
        claims: list[Claim] = []
        for fields in case.fields:
            if key in fields.properties:
                claims.append(fields.properties[key])
            elif not fields.patterns and fields.rest is not None:
                claims.append(fields.rest)
        return all_of(claims)

    def _is_out(self, claims: Claims | None) -> bool:
        return claims is None or contradict(claims)

    def _keys(self, case: SchemaCase) -> _Keys:
        keys = _Keys()
        if case.names and self._takes_every_name(case):
            case = replace(case, names=())
        names = dict.fromkeys(key for fields in case.fields for key in fields.properties)
        names |= dict.fromkeys(case.required) | dict.fromkeys(sorted(case.absent))
        for key in names:
            keys.listed[key] = self._of_key(case, key)
        patterns = dict.fromkeys(key for fields in case.fields for key in fields.patterns)
        if len(patterns) > _MAX_PATTERNS:
            raise refusal(
                "patternProperties", _path(case), f"more than {_MAX_PATTERNS} in one object"
            )
        keys.rest = _rests(case.fields, set())
        if not case.names and len(patterns) <= 1:
            for pattern in patterns:
                if not self._add_few(keys, pattern, case):
                    keys.patterns[self._written(pattern, case)] = _rests(case.fields, {pattern})
            return keys
        if not self._add_named(keys, case, bool(patterns)):
            self._add_cells(keys, case, list(patterns))
        return keys

    def _takes_every_name(self, case: SchemaCase) -> bool:
        """Tell whether `propertyNames` says nothing, as in what zod writes for a record."""
        every = self._writer.texts.languages
        try:
            return self._writer.texts.automaton(every.negated(self._names(case))).is_empty
        except (PatternRefused, GrammarRejected):
            return False

    def _add_named(self, keys: _Keys, case: SchemaCase, has_patterns: bool) -> bool:
        """Add the keys that `propertyNames` lists, or its one pattern; tell whether that is all."""
        for claim in case.names:
            listed = self._writer.values(all_of([claim]), _MAX_NAMED)
            if listed is not None:
                keys.rest = None
                for key in listed:
                    if isinstance(key, str) and key not in keys.listed:
                        keys.listed[key] = self._of_key(case, key)
                return True
        if has_patterns or len(case.names) != 1:
            return False
        options = [
            one for one in self._writer.cases(all_of(list(case.names))) if "string" in one.kinds
        ]
        written = self._writer.texts.schemas(options[0]) if len(options) == 1 else []
        if len(written) != 1 or set(written[0]) != {"pattern"} or "string" in options[0].blocked:
            return False
        if not self._add_few(keys, written[0]["pattern"], case):
            keys.patterns[written[0]["pattern"]] = keys.rest
        keys.rest = None
        return True

    def _add_few(self, keys: _Keys, pattern: str, case: SchemaCase) -> bool:
        """List the keys of a pattern if they are few; tell whether they are."""
        if case.num_keys != (0, None):
            return False
        try:
            term = self._writer.texts.term(pattern)
            texts = self._writer.texts.automaton(term).texts(_MAX_LISTED)
        except PatternRefused:
            return False
        for key in texts or ():
            if key not in keys.listed:
                keys.listed[key] = self._of_key(case, key)
        return texts is not None

    def _of_key(self, case: SchemaCase, key: str) -> Claims | None:
        """Return the claims on the value of one key."""
        if key in case.absent or not all(
            self._writer.judge.holds(name, key) for name in case.names
        ):
            return None
        claims: list[Claim] = []
        for fields in case.fields:
            node = Node(0, fields.path)
            found = [
                claim
                for pattern, claim in fields.patterns.items()
                if self._writer.texts.matches("pattern", pattern, key, node)
            ]
            if key in fields.properties:
                found.append(fields.properties[key])
            if not found and fields.rest is not None:
                found.append(fields.rest)
            claims += found
        return all_of(claims)

    def _add_cells(self, keys: _Keys, case: SchemaCase, patterns: list[str]) -> None:
        """Add patterns that no two of which match one key, each with its claims."""
        every = self._writer.texts.languages
        try:
            allowed = every.everything
            if case.names:
                allowed = self._names(case)
            cells: list[tuple[Term, set[str]]] = [(allowed, set())]
            for pattern in patterns:
                term = self._writer.texts.term(pattern)
                cells = [
                    cell
                    for inside, matched in cells
                    for cell in (
                        (every.both({inside, term}), matched | {pattern}),
                        (every.both({inside, every.negated(term)}), matched),
                    )
                    if not self._writer.texts.automaton(cell[0]).is_empty
                ]
            for term, matched in cells:
                claims = _rests(case.fields, matched)
                if matched or case.names:
                    self._add_cell(keys, term, claims, case)
            if case.names:
                keys.rest = None
        except PatternRefused as error:
            word = "propertyNames" if case.names else "patternProperties"
            raise refusal(word, _path(case), f"{error} is not supported") from error

    def _add_cell(self, keys: _Keys, term: Term, claims: Claims | None, case: SchemaCase) -> None:
        automaton = self._writer.texts.automaton(term)
        is_counted = case.num_keys != (0, None)
        texts = None if is_counted else automaton.texts(_MAX_LISTED)
        if texts is None:
            keys.patterns[automaton.pattern()] = claims
            return
        for key in texts:
            if key not in keys.listed:
                keys.listed[key] = self._of_key(case, key)

    def _names(self, case: SchemaCase) -> Term:
        """Return the language of the keys that `propertyNames` allows."""
        every, terms = self._writer.texts.languages, set[int]()
        for claim in case.names:
            options = set[int]()
            for one in self._writer.cases(all_of([claim])):
                if one.values is not None:
                    texts = [value for value in one.values if isinstance(value, str)]
                    options |= {
                        every.text(text)
                        for text in texts
                        if "string" in one.kinds and self._writer.judge.holds(claim, text)
                    }
                elif "string" in one.kinds:
                    if "string" in one.blocked:
                        raise one.blocked["string"]
                    options.add(self._writer.texts.language(one))
            terms.add(every.either(options))
        return every.both(terms)

    def _written(self, pattern: str, case: SchemaCase) -> str:
        try:
            return self._writer.texts.written(pattern)
        except PatternRefused as error:
            raise refusal("patternProperties", _path(case), f"{error} is not supported") from error

    def _counted(
        self, keys: _Keys, case: SchemaCase
    ) -> Iterator[tuple[dict[str, bool], int, int | None]]:
        """Yield which listed keys are there (others may be) and how many keys there are."""
        least, most = case.num_keys
        here = [key for key, claims in keys.listed.items() if not self._is_out(claims)]
        required = dict.fromkeys(case.required, True)
        optional = [key for key in here if key not in required]
        is_closed = self._is_out(keys.rest) and all(map(self._is_out, keys.patterns.values()))
        if least <= len(required):
            least = 0
        if is_closed and most is not None and most >= len(here):
            most = None
        if (least == 0 and most is None) or not optional:
            yield required, least, most
            return
        if is_closed and least == len(required) + 1 and most is None:
            for index, key in enumerate(optional):
                yield {**required, **dict.fromkeys(optional[:index], False), key: True}, 0, None
            return
        low = max(0, least - len(required)) if is_closed else 0
        high = len(optional) if most is None else min(len(optional), most - len(required))
        if sum(math.comb(len(optional), size) for size in range(low, high + 1)) > _MAX_SETS:
            word = "minProperties" if least else "maxProperties"
            reason = f"leaves more than {_MAX_SETS} sets of optional keys"
            raise refusal(word, _path(case), reason)
        for size in range(low, high + 1):
            for chosen in itertools.combinations(optional, size):
                others = dict.fromkeys((key for key in optional if key not in chosen), False)
                yield {**required, **dict.fromkeys(chosen, True), **others}, least, most

    def _keywords(
        self, keys: _Keys, required: dict[str, bool], least: int, most: int | None, case: SchemaCase
    ) -> dict[str, Any] | None:
        """Return keywords; None if there are too few keys to count."""
        schema, keywords = self._writer.schema, dict[str, Any]()
        listed = {
            key: False if claims is None or required.get(key) is False else schema(claims)
            for key, claims in keys.listed.items()
        }
        patterns = {
            pattern: False if claims is None else schema(claims)
            for pattern, claims in keys.patterns.items()
        }
        rest = False if keys.rest is None else schema(keys.rest)
        is_closed = rest is False and all(inner is False for inner in patterns.values())
        if is_closed:
            patterns = {}
            listed = {key: inner for key, inner in listed.items() if inner is not False}
        if listed:
            keywords["properties"] = listed
        if patterns:
            keywords["patternProperties"] = patterns
        if rest is not True:
            keywords["additionalProperties"] = rest
        needed = [key for key, is_there in required.items() if is_there]
        if is_closed and least > len(needed):
            return None
        if needed:
            keywords["required"] = needed
        return {**keywords, **_counts(len(needed), is_closed, least, most, case)}


def _is_overfull(case: SchemaCase) -> bool:
    """Tell whether more keys have to be there than may be."""
    most = case.num_keys[1]
    return most is not None and len(case.required) > most


def _counts(
    num: int, is_closed: bool, least: int, most: int | None, case: SchemaCase
) -> dict[str, Any]:
    """Return the keywords that count keys, where `num` are certain."""
    counts: dict[str, Any] = {}
    if least > num and not is_closed:
        # A key that is not listed may be repeated, and only counts once: one such key is certain.
        if least > num + 1:
            reason = "unlisted keys may repeat; list them as required"
            raise refusal("minProperties", _path(case), reason)
        counts["minProperties"] = least
    if most is not None and not is_closed:
        counts["maxProperties"] = most
    return counts


def _rests(all_fields: tuple[Fields, ...], matched: set[str]) -> Claims | None:
    """Return the claims on keys that match these patterns and that nobody lists."""
    claims: list[Claim] = []
    for fields in all_fields:
        found = [claim for pattern, claim in fields.patterns.items() if pattern in matched]
        claims += found or ([] if fields.rest is None else [fields.rest])
    joined = all_of(claims)
    return None if contradict(joined) else joined


def _path(case: SchemaCase) -> tuple[str, ...]:
    return min((claim.node.path for claim in case.claims), default=())
