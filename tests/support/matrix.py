"""Which cells of a matrix `make test` runs, and in which order files come; other cells are `slow`.

A test marked `each_value` runs for few cells that have each value of each parameter in them. Of the
other tests on both kinds of server those of what a server itself does or refuses run on both; each
other one runs on one of the two, half of them on either.
"""

from __future__ import annotations

import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any
from zlib import crc32

import pytest

SERVER_KINDS = ("valkey", "redis")
ON_EACH_SERVER = {"test_server_refuses.py", "test_versions.py"}
# The part of a run in which all files of waiting tests begin: they are the long ones.
_WAITS_END = 0.8

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


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


def share_servers(items: Iterable[pytest.Item]) -> None:
    """Mark a test as slow on one of the two kinds of server, which its name decides."""
    if shutil.which("redis-server") is None:
        return
    shared: dict[str, dict[str, pytest.Item]] = {}
    for item in items:
        callspec = getattr(item, "callspec", None)
        kind = callspec.params.get("server") if callspec else None
        if kind not in SERVER_KINDS or item.get_closest_marker("each_value"):
            continue
        if item.path.name not in ON_EACH_SERVER:
            shared.setdefault(item.nodeid.replace(kind, "", 1), {})[kind] = item
    for name, by_kind in shared.items():
        if len(by_kind) == len(SERVER_KINDS):
            kept = SERVER_KINDS[crc32(name.encode()) % len(SERVER_KINDS)]
            for kind in by_kind.keys() - {kept}:
                by_kind[kind].add_marker(pytest.mark.slow)


def mix_files(items: list[pytest.Item], waiting: str) -> None:
    """Put files whose tests have the mark `waiting` evenly between the others, all before the end.

    They wait for processes, leases and deadlines, and leave a core to what computes beside them.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    kinds: dict[bool, list[Path]] = {True: [], False: []}
    for path, own in files.items():
        kinds[any(item.get_closest_marker(waiting) for item in own)].append(path)
    places = {
        path: number / len(paths) * (_WAITS_END if waits else 1)
        for waits, paths in kinds.items()
        for number, path in enumerate(paths)
    }
    items[:] = [item for path in sorted(files, key=places.__getitem__) for item in files[path]]


def covering(cells: list[set[Any]]) -> set[int]:
    """Choose cells that have all values in them: the one with most new ones, again and again.

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
