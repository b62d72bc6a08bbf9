"""Lists: what a case says of their items, as keywords."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.schema.case import identity
from tokenbus.engine.grammar.schema.keywords import MARK, mark_of
from tokenbus.engine.grammar.schema.node import Claim, Claims, all_of, contradict
from tokenbus.engine.grammar.schema.refusal import pointer, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.engine.grammar.schema.case import Contained, SchemaCase
    from tokenbus.engine.grammar.schema.refusal import Path
    from tokenbus.engine.grammar.schema.texts import Combiner

# Lists that are written out where no item may come twice: all orders of 5 values are 326. Places at
# which the one item may stand that has to be there; items of which several have to be there.
_MAX_LISTS, _MAX_PLACES, _MAX_COUNTED = 400, 16, 5
# Ways to place what a list contains.
_MAX_ROWS = 256


class _Row:
    """Claims on the items of a list, one by one, then on the rest; and how many there are."""

    def __init__(self, prefix: list[Claims], rest: Claims, least: int, most: int | None) -> None:
        self.prefix, self.rest = prefix, rest
        self.least, self.most = least, most

    def at(self, index: int) -> Claims:
        """Return the claims on one item."""
        return self.prefix[index] if index < len(self.prefix) else self.rest

    def joined(self, extra: dict[int, Claim], least: int, most: int | None) -> _Row:
        """Return the row with more claims on single items, and other bounds."""
        end = max([len(self.prefix), *(index + 1 for index in extra)])
        prefix = [
            all_of([*self.at(index), *([extra[index]] if index in extra else [])])
            for index in range(end)
        ]
        return _Row(prefix, self.rest, least, most)


class Lists:
    """Writes the lists of cases."""

    def __init__(self, writer: Combiner) -> None:
        self._writer = writer

    def schemas(self, case: SchemaCase) -> list[dict[str, Any]]:
        """Return keywords of the lists of a case; none if nothing is left."""
        found = []
        for row in self._rows(case):
            if case.unique is None or self._is_unique(row):
                found.append(self._keywords(row))
            else:
                found.append(self._of_unique(row, case.unique))
        return [one for one in found if one.get("enum") != []]

    def is_empty(self, case: SchemaCase) -> bool:
        """Tell whether there is no such list, as far as can be seen."""
        row = self._bounded(self._row(case))
        if row.most is not None and row.least > row.most:
            return True
        if any(part.claim.verdict is False and part.least > 0 for part in case.contained):
            return True
        return any(
            contradict(row.at(index)) or self._writer.is_empty(row.at(index))
            for index in range(min(row.least, len(row.prefix) + 1))
        )

    def _row(self, case: SchemaCase) -> _Row:
        num = max((len(items.prefix) for items in case.items), default=0)
        prefix: list[Claims] = []
        for index in range(num):
            claims = [
                items.prefix[index] if index < len(items.prefix) else items.rest
                for items in case.items
            ]
            prefix.append(all_of([claim for claim in claims if claim is not None]))
        rests = [items.rest for items in case.items if items.rest is not None]
        return _Row(prefix, all_of(rests), *case.num_items)

    def _bounded(self, row: _Row) -> _Row:
        """Return the row with the bound that items nothing satisfies set."""
        for index in range(len(row.prefix) + 1):
            if row.most is not None and index >= row.most:
                break
            if contradict(row.at(index)):
                return _Row(row.prefix[:index], (), row.least, index)
        return row

    def _rows(self, case: SchemaCase) -> Iterator[_Row]:
        """Yield rows without `contains`: one for each way to place what is contained."""
        if any(part.most is not None and part.least > part.most for part in case.contained):
            return
        pending = [(self._bounded(self._row(case)), list(case.contained))]
        while pending:
            row, contained = pending.pop(0)
            if row.most is not None and row.least > row.most:
                continue
            if not contained:
                yield row
                continue
            pending += [(one, contained[1:]) for one in self._placed(row, contained[0])]
            if len(pending) > _MAX_ROWS:
                raise refusal("contains", contained[0].path, f"leaves more than {_MAX_ROWS} ways")

    def _placed(self, row: _Row, part: Contained) -> Iterator[_Row]:
        """Yield rows, one for each way to place the items that a row contains."""
        claim, least, most, begin, path = part
        if claim.verdict is not None:
            num = (least, most) if claim.verdict else (0, None)
            if claim.verdict or not least:
                yield _narrowed(row, num, begin)
        elif most == 0:
            prefix = [
                all_of([*row.at(index), *([claim.opposite] if index >= begin else [])])
                for index in range(max(len(row.prefix), begin))
            ]
            yield _Row(prefix, all_of([*row.rest, claim.opposite]), row.least, row.most)
        elif least == 0 and most is None:
            yield row
        elif row.most is None:
            raise refusal("contains", path, "only in a list with few items (maxItems)")
        elif least == 1 and most is None and row.most <= _MAX_PLACES:
            for place in range(begin, row.most):
                extra = dict.fromkeys(range(begin, place), claim.opposite)
                yield row.joined({**extra, place: claim}, max(row.least, place + 1), row.most)
        elif row.most <= _MAX_COUNTED:
            for num_items in range(row.least, row.most + 1):
                yield from _chosen(row, part, num_items)
        else:
            raise refusal("contains", path, f"only with maxItems up to {_MAX_COUNTED}")

    def _keywords(self, row: _Row) -> dict[str, Any]:
        end = len(row.prefix) if row.most is None else min(len(row.prefix), row.most)
        keywords: dict[str, Any] = {}
        if end:
            keywords["prefixItems"] = [self._writer.schema(row.at(index)) for index in range(end)]
        if row.most == end and end:
            keywords["items"] = False
        elif row.rest and row.most != 0:
            keywords["items"] = self._writer.schema(row.rest)
        if row.least:
            keywords["minItems"] = row.least
        if row.most is not None and not (end and row.most == end):
            keywords["maxItems"] = row.most
        return keywords

    def _is_unique(self, row: _Row) -> bool:
        """Tell whether no two items can be equal, as far as can be seen."""
        if row.most is None or row.most > 8:
            return False
        return all(
            self._writer.is_empty(all_of([*row.at(one), *row.at(other)]))
            for one, other in itertools.combinations(range(row.most), 2)
        )

    def _of_unique(self, row: _Row, path: Path) -> dict[str, Any]:
        """Return keywords of lists without equal items: each written out, or marked as such.

        A marked list has items that are all alike, or that no other item can be equal to: then
        each one that has begun can be ended. Raises: GrammarRejected.
        """
        try:
            return {"enum": self._written_out(row, path)}
        except GrammarRejected:
            if not self._writer.is_watched or not self._is_alike(row):
                raise
        num = self._num_values(row.rest)
        num_all = None if num is None else num + len(row.prefix)
        most = min((one for one in (row.most, num_all) if one is not None), default=None)
        if most is not None and row.least > most:
            return {"enum": []}
        keywords = self._keywords(_Row(row.prefix, row.rest, row.least, most))
        return {**keywords, MARK: mark_of(pointer(path))}

    def _is_alike(self, row: _Row) -> bool:
        """Tell whether no item can be equal to one that another place of the list asks for."""
        places = [row.at(index) for index in range(len(row.prefix) + 1)]
        return len(places) <= 8 and all(
            self._writer.is_empty(all_of([*one, *other]))
            for one, other in itertools.combinations(places, 2)
        )

    def _num_values(self, claims: Claims) -> int | None:
        """Count the values that satisfy claims, or more than these; None if they are endless."""
        num = 0
        for case in self._writer.cases(claims) if claims else ():
            if case.values is not None:
                num += len(case.values)
                continue
            found = [_num_of_kind(case, kind) for kind in sorted(case.kinds)]
            if None in found:
                return None
            num += sum(one for one in found if one is not None)
        return num if claims else None

    def _written_out(self, row: _Row, path: Path) -> list[Any]:
        """Return all lists without equal items. Raises: GrammarRejected if these are many."""
        why = f"only where it leaves at most {_MAX_LISTS} lists; bound the values and maxItems"
        found: list[list[Any]] = []
        pending: list[list[Any]] = [[]]
        while pending:
            one = pending.pop()
            if len(one) >= row.least:
                found.append(one)
            if row.most is not None and len(one) >= row.most:
                continue
            values = self._writer.values(row.at(len(one)))
            if values is None:
                raise refusal("uniqueItems", path, why)
            taken = set(map(identity, one))
            pending += [[*one, value] for value in values if identity(value) not in taken]
            if len(found) + len(pending) > _MAX_LISTS:
                raise refusal("uniqueItems", path, why)
        return sorted(found, key=len)


def _num_of_kind(case: SchemaCase, kind: str) -> int | None:
    """Count the values of one kind, None if they are endless or nobody knows."""
    if kind in ("null", "boolean"):
        return 1 + (kind == "boolean")
    if kind == "integer" and case.low is not None and case.high is not None:
        return max(0, math.floor(case.high[0]) - math.ceil(case.low[0]) + 1)
    return None


def _narrowed(row: _Row, num: tuple[int, int | None], begin: int) -> _Row:
    """Return a row of which all items from an index on are counted."""
    least = num[0] + begin if num[0] else 0
    ends = [
        one for one in (row.most, None if num[1] is None else num[1] + begin) if one is not None
    ]
    return row.joined({}, max(row.least, least), min(ends, default=None))


def _chosen(row: _Row, part: Contained, num_items: int) -> Iterator[_Row]:
    """Yield rows of some length, one for each set of items that satisfy a claim."""
    places = range(part.begin, num_items)
    most = len(places) if part.most is None else min(part.most, len(places))
    for size in range(part.least, most + 1):
        for chosen in itertools.combinations(places, size):
            extra = {
                index: part.claim if index in chosen else part.claim.opposite for index in places
            }
            yield row.joined(extra, num_items, num_items)
