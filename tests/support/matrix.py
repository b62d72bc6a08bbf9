"""Few cells of a large matrix that have each value of each parameter in them.

A test marked `each_value` runs in `make test` for such cells alone; the others are `slow`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterable


def leave_out_cells(items: Iterable[pytest.Item]) -> None:
    """Mark as slow what adds no value to the cells that stay."""
    cells: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("each_value") and not item.get_closest_marker("slow"):
            cells.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for matrix in cells.values():
        kept = covering([_values(item) for item in matrix])
        for cell, item in enumerate(matrix):
            if cell not in kept:
                item.add_marker(pytest.mark.slow)


def covering(cells: list[set[Any]]) -> set[int]:
    """Choose cells that have all values in them: the one that brings most new ones, again and again.

    Of equal ones it is the one whose values have been chosen least.
    """
    missing, chosen, uses = set().union(*cells), set[int](), Counter[Any]()
    while missing:
        best = max(cells, key=lambda cell: (len(cell & missing), -sum(uses[v] for v in cell)))
        chosen.add(cells.index(best))
        missing -= best
        uses.update(best)
    return chosen


def _values(item: pytest.Item) -> set[Any]:
    """Return the parameters of a cell; those that one list names together are one."""
    callspec = getattr(item, "callspec", None)
    if callspec is None:
        return set()
    together = {name: name for name in callspec.params}
    for mark in item.iter_markers("parametrize"):
        names = mark.args[0]
        for name in names.replace(" ", "").split(",") if isinstance(names, str) else names:
            together[name] = str(names)
    values: dict[str, list[int]] = {}
    for name, value in callspec.params.items():
        values.setdefault(together[name], []).append(id(value))
    return {(names, *listed) for names, listed in values.items()}
