"""The modules of the packages as a graph: who imports whom, typing imports included."""

from __future__ import annotations

import ast
import gc
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("kernels", "engine", "producer", "worker")

Graph = dict[str, set[str]]


@dataclass(frozen=True, slots=True)
class Module:
    """One module; `path` counts from the root of the repository."""

    path: str
    source: str

    @property
    def name(self) -> str:
        """Return the dotted name it is imported by."""
        parts = ("tokenbus", *Path(self.path).with_suffix("").parts)
        return ".".join(parts).removesuffix(".__init__")

    @property
    def folder(self) -> str:
        """Return the folder it lies in."""
        return Path(self.path).parent.as_posix()

    @property
    def tree(self) -> ast.Module:
        """Return what it parses to, which is nobody's to change."""
        return parsed(self.source)

    @property
    def docstring(self) -> str:
        """Return its docstring, empty if it has none."""
        return ast.get_docstring(self.tree) or ""

    def imports(self, *, in_functions: bool = True) -> set[str]:
        """Return every dotted name it imports, conditional and typing imports included.

        `from a import b` gives `a.b`, whatever `b` is: `Tree.resolve` finds the module.
        """
        return set(_imports_of(self, in_functions=in_functions))


@cache
def parsed(source: str) -> ast.Module:
    """Return the tree of a source, which is nobody's to change.

    Nothing is collected meanwhile: a task that dies of it may log a traceback, which CPython 3.11
    draws by parsing, and a parse amid a parse fails with a SystemError.
    """
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if was_collecting:
            gc.enable()


@cache
def _imports_of(module: Module, *, in_functions: bool) -> frozenset[str]:
    """Read a module's imports, once however many planted modules stand beside it."""
    tree = module.tree
    if not in_functions:
        own = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
        tree = ast.Module(own, [])
    package = ".".join(("tokenbus", *Path(module.folder).parts))
    names: set[str] = set()
    for node in ast.walk(tree):
        names |= _imported(node, package)
    return frozenset(names)


def _imported(node: ast.AST, package: str) -> set[str]:
    """Return what one statement or call imports; `package` is where relative imports begin."""
    match node:
        case ast.Import(names=aliases):
            return {alias.name for alias in aliases}
        case ast.ImportFrom(module=module, names=aliases, level=level):
            base = ".".join(package.split(".")[: 1 - level or None]) if level else ""
            full = ".".join(part for part in (base, module) if part)
            return {f"{full}.{alias.name}" for alias in aliases}
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"), args=args
        ):
            return {str(arg.value) for arg in args if isinstance(arg, ast.Constant)}
    return set()


class Tree:
    """All modules of the packages by name, and what they import of each other."""

    def __init__(self, modules: Iterable[Module]) -> None:
        self.modules = {module.name: module for module in modules}

    @classmethod
    def read(cls) -> Tree:
        """Read the tree of this repository."""
        paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
        return cls(Module(path.relative_to(ROOT).as_posix(), path.read_text()) for path in paths)

    def planted(self, *modules: Module) -> Tree:
        """Return this tree with modules added or replaced."""
        return Tree({**self.modules, **{module.name: module for module in modules}}.values())

    def package(self, name: str) -> list[Module]:
        """Return the modules of one package."""
        return [module for module in self.modules.values() if module.path.startswith(f"{name}/")]

    def resolve(self, name: str) -> str | None:
        """Return the module that an imported name leads to, None if it is none of the tree's."""
        while name not in self.modules:
            if "." not in name:
                return None
            name = name.rpartition(".")[0]
        return name

    def graph(self) -> Graph:
        """Return for each module those of the tree that it imports."""
        edges: Graph = {}
        for name, module in self.modules.items():
            found = {self.resolve(imported) for imported in module.imports()}
            edges[name] = {other for other in found if other is not None} - {name}
        return edges


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that reach each other, each sorted (Kosaraju's two passes)."""
    finished: list[str] = []
    seen: set[str] = set()
    for start in sorted(graph):
        _walk(start, graph, seen, finished)
    backwards: Graph = {name: set() for name in graph}
    for name, others in graph.items():
        for other in others:
            backwards.setdefault(other, set()).add(name)
    seen = set()
    groups: list[list[str]] = []
    for start in reversed(finished):
        group: list[str] = []
        _walk(start, backwards, seen, group)
        if len(group) > 1:
            groups.append(sorted(group))
    return sorted(groups)


def _walk(start: str, graph: Mapping[str, set[str]], seen: set[str], finished: list[str]) -> None:
    """Visit what can be reached and has not been seen, and list each module when it is done."""
    if start in seen:
        return
    seen.add(start)
    path = [(start, iter(sorted(graph.get(start, ()))))]
    while path:
        name, others = path[-1]
        other = next((other for other in others if other not in seen), None)
        if other is None:
            finished.append(name)
            path.pop()
        else:
            seen.add(other)
            path.append((other, iter(sorted(graph.get(other, ())))))
