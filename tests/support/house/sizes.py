"""How large things may grow: functions, classes, files and rooms."""

from __future__ import annotations

import ast
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from house.modules import Module

MAX_FUNCTION_LINES = 50
MAX_PUBLIC_METHODS = 15
MAX_ROOM_MODULES = 16
# Past it the docstring says why the file is one, in one of these forms.
LONG_FILE_LINES = 300
EXCUSES = ("one noun", "one file because")

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def long_functions(module: Module) -> list[str]:
    """Return the functions that are too long."""
    return [
        f"{module.path}: {node.name} has {length} lines"
        for node in ast.walk(module.tree)
        if isinstance(node, _FUNCTIONS)
        and (length := (node.end_lineno or node.lineno) - node.lineno + 1) > MAX_FUNCTION_LINES
    ]


def wide_classes(module: Module) -> list[str]:
    """Return the classes with too many public methods, properties included."""
    found = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ClassDef):
            continue
        names = {each.name for each in node.body if isinstance(each, _FUNCTIONS)}
        num_public = sum(not name.startswith("_") for name in names)
        if num_public > MAX_PUBLIC_METHODS:
            found.append(f"{module.path}: {node.name} has {num_public} public methods")
    return found


def unexplained_length(module: Module) -> list[str]:
    """Return the module if it is long and its docstring does not say why."""
    num_lines = len(module.source.splitlines())
    told = " ".join(module.docstring.split())
    if num_lines <= LONG_FILE_LINES or any(excuse in told for excuse in EXCUSES):
        return []
    return [f"{module.path} has {num_lines} lines; say in its docstring why it is one noun"]


def crowded_rooms(modules: Iterable[Module]) -> list[str]:
    """Return the folders that hold too many modules at their level."""
    counts = Counter(m.folder for m in modules if not m.path.endswith("__init__.py"))
    return [
        f"{folder}/ holds {count} modules"
        for folder, count in sorted(counts.items())
        if count > MAX_ROOM_MODULES
    ]
