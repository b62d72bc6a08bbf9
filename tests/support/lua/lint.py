"""Lint the Lua scripts: what `make lint` runs, because no linter of Lua comes with pip.

Each part is checked as a file of its own, below its header: the names of the header are declared,
those of other parts are not. So a mistake is told with its file and line, and a name that a part
takes from another without saying so is undefined. Then what concerns several parts: names that two
parts of one script declare, and names that are offered and never used.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from lua.parts import part_names
from luaparser import ast, astnodes

from tokenbus.producer.scripts.source import Part, libraries, read_part

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# What Redis and Valkey give a script.
GLOBALS = (
    "ARGV", "KEYS", "bit", "cjson", "cmsgpack", "error", "ipairs", "math", "next", "pairs",
    "pcall", "redis", "select", "string", "struct", "table", "tonumber", "tostring", "type",
    "unpack",
)  # fmt: skip
# Parsed, but not Lua 5.1.
_LATER = (
    astnodes.Goto,
    astnodes.Label,
    astnodes.FloorDivOp,
    astnodes.BitOp,
    astnodes.UBNotOp,
)


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One mistake and where it is."""

    part: str
    line: int
    text: str

    def __str__(self) -> str:
        """Write it as compilers do."""
        return f"producer/scripts/lua/{self.part}.lua:{self.line}: {self.text}"


@dataclass(slots=True)
class _Local:
    """A declared name."""

    line: int
    kind: str
    is_read: bool = False


@dataclass
class _Linter:
    """Walks one part with the scopes that are open, innermost last."""

    part: Part
    scopes: list[dict[str, _Local]] = field(default_factory=lambda: [{}])
    findings: list[Finding] = field(default_factory=list)
    last_line: int = 1

    def lint(self) -> list[Finding]:
        """Return what is wrong with the part."""
        try:
            nodes = _parse(self.part.body)
        except ast.SyntaxException as error:
            self._find(self.part.first_line, f"does not parse: {error}")
            return self.findings
        for name in self.part.signature.names:
            self._declare(name, 1, "argument")
        for library, names in self.part.uses.items():
            for name in names:
                self._declare(name, 1, f"name of {library}")
        self._statements(nodes)
        for name in self.part.offers:
            self._offer(name)
        self._close()
        return sorted(self.findings)

    def _offer(self, name: str) -> None:
        found = self.scopes[0].get(name)
        if found is None:
            self._find(1, f"{name} is offered and not declared")
        else:
            found.is_read = True

    def _find(self, line: int, text: str) -> None:
        self.findings.append(Finding(self.part.name, line, text))

    def _line(self, node: Any) -> int:
        """Return the line of a node; the parser does not note that of each, but of statements."""
        if node.line is not None:
            self.last_line = int(node.line) + self.part.first_line - 1
        return self.last_line

    def _declare(self, name: str, line: int, kind: str) -> None:
        if name == "_":
            return
        if name in GLOBALS:
            self._find(line, f"{kind} {name} shadows a global")
        elif any(name in scope for scope in self.scopes):
            self._find(line, f"{kind} {name} shadows another {name}")
        self.scopes[-1][name] = _Local(line, kind)

    def _close(self) -> None:
        for name, local in self.scopes.pop().items():
            if not local.is_read:
                self._find(local.line, f"{local.kind} {name} is not used")

    def _resolve(self, name: str) -> _Local | None:
        return next((scope[name] for scope in reversed(self.scopes) if name in scope), None)

    def _statements(self, nodes: Iterable[Any]) -> None:
        for node in nodes:
            self._visit(node)

    def _block(self, body: Any, names: Iterable[Any] = (), kind: str = "") -> None:
        self.scopes.append({})
        for name in names:
            if isinstance(name, astnodes.Name):
                self._declare(name.id, self._line(name), kind)
        self._statements(body.body)
        self._close()

    def _visit(self, node: Any) -> None:
        """Walk a node: by its own method, else through its children."""
        line = self._line(node)
        if isinstance(node, _LATER):
            self._find(line, f"{node.display_name} is not Lua 5.1")
        walk: Callable[[Any], None] | None = getattr(
            self, f"_on_{type(node).__name__.lower()}", None
        )
        if walk is not None:
            walk(node)
        else:
            self._statements(_children(node))

    def _on_name(self, node: Any) -> None:
        local = self._resolve(node.id)
        if local is not None:
            local.is_read = True
        elif node.id not in GLOBALS:
            self._find(self._line(node), f"{node.id} is not defined")

    def _on_index(self, node: Any) -> None:
        self._visit(node.value)
        if node.notation is astnodes.IndexNotation.SQUARE:
            self._visit(node.idx)

    def _on_field(self, node: Any) -> None:
        if node.between_brackets:
            self._visit(node.key)
        self._visit(node.value)

    def _on_invoke(self, node: Any) -> None:
        self._statements((node.source, *node.args))

    def _on_localassign(self, node: Any) -> None:
        line = self._line(node)
        self._statements(node.values)
        for target in node.targets:
            self._declare(target.id, line, "variable")

    def _on_assign(self, node: Any) -> None:
        self._statements(node.values)
        for target in node.targets:
            self._assign(target)

    def _assign(self, target: Any) -> None:
        if not isinstance(target, astnodes.Name):
            self._visit(target)
        elif self._resolve(target.id) is None:
            self._find(self._line(target), f"{target.id} is assigned as a global")

    def _on_localfunction(self, node: Any) -> None:
        self._declare(node.name.id, self._line(node.name), "function")
        self._block(node.body, node.args, "argument")

    def _on_function(self, node: Any) -> None:
        self._assign(node.name)
        self._block(node.body, node.args, "argument")

    def _on_method(self, node: Any) -> None:
        self._visit(node.source)
        self._block(node.body, node.args, "argument")

    def _on_anonymousfunction(self, node: Any) -> None:
        self._block(node.body, node.args, "argument")

    def _on_fornum(self, node: Any) -> None:
        self._statements(_children((node.start, node.stop, node.step)))
        self._block(node.body, [node.target], "variable")

    def _on_forin(self, node: Any) -> None:
        self._statements(node.iter)
        self._block(node.body, node.targets, "variable")

    def _on_repeat(self, node: Any) -> None:
        self.scopes.append({})
        self._statements((*node.body.body, node.test))
        self._close()

    def _on_block(self, node: Any) -> None:
        self._block(node)


@cache
def _parse(text: str) -> list[Any]:
    """Return the statements of a text. Raises: SyntaxException."""
    statements: list[Any] = ast.parse(text).body.body
    return statements


def _children(node: Any) -> Iterator[Any]:
    """Give the nodes right below a node, or those in a list."""
    if isinstance(node, astnodes.Node):
        values = [value for name, value in vars(node).items() if not name.startswith("_")]
    elif isinstance(node, list | tuple):
        values = list(node)
    else:
        return
    for value in values:
        if isinstance(value, astnodes.Node):
            yield value
        elif isinstance(value, list | tuple):
            yield from _children(value)


def lint_part(part: Part) -> list[Finding]:
    """Return what is wrong within one part."""
    return _Linter(part).lint()


def lint_script(parts: list[Part]) -> list[Finding]:
    """Return the names that two parts of one script declare for themselves at their top level."""
    names = Counter(name for part in parts for name in _top_level(part))
    last = parts[-1]
    return [
        Finding(last.name, 1, f"{name} is declared by two parts of the script")
        for name, count in names.items()
        if count > 1
    ]


def _top_level(part: Part) -> set[str]:
    """Name what a part declares at its top level, unless it does not parse."""
    try:
        nodes = _parse(part.body)
    except ast.SyntaxException:
        return set()
    names = set(part.signature.names)
    for node in nodes:
        if isinstance(node, astnodes.LocalFunction):
            names.add(node.name.id)
        elif isinstance(node, astnodes.LocalAssign):
            names.update(target.id for target in node.targets)
    return names


def lint_offers(parts: Iterable[Part]) -> list[Finding]:
    """Return what libraries offer and no part uses."""
    parts = list(parts)
    used = {
        (library, name) for part in parts for library in part.uses for name in part.uses[library]
    }
    return [
        Finding(part.name, 1, f"{name} is offered and used by no other part")
        for part in parts
        for name in part.offers
        if (part.name, name) not in used
    ]


def lint_all() -> list[Finding]:
    """Return what is wrong with the scripts."""
    scripts = [read_part(name) for name in part_names()]
    parts = scripts + [read_part(name) for name in part_names("lib/")]
    findings = [finding for part in parts for finding in lint_part(part)]
    for script in scripts:
        findings += lint_script([*libraries(script.name), script])
    return findings + lint_offers(parts)


def main() -> int:
    """Print what is wrong; 1 if anything is."""
    findings = lint_all()
    print(*findings, sep="\n", end="\n" if findings else "")
    return bool(findings)


if __name__ == "__main__":
    sys.exit(main())
