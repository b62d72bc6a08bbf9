"""The codes of errors, read off the sources: of failed jobs, and of the gateway's answers."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING

from house.modules import ROOT, parsed

from tokenbus.engine.types import FaultCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# Calls that make an error, with the place of its code among the arguments.
_JOB_CALLS = {"Failure": 0, "JobRefused": 0}
_API_CALLS = {"ApiError": 2, "_fixed": 2}


@cache
def job_codes() -> frozenset[str]:
    """Return the codes of failed jobs: those that Python names, and those of the scripts."""
    named = {str(code) for _, code in _made("worker", _JOB_CALLS) if code is not None}
    for path in (ROOT / "producer" / "scripts" / "lua").rglob("*.lua"):
        text = path.read_text()
        named |= set(re.findall(r"\bfail(?:ure|_waiting)\([^'\n]*'(\w+)'", text))
        named |= set(re.findall(r'"error":\{"code":"(\w+)"', text))
    return frozenset(named | {code.value for code in FaultCode})


@cache
def api_codes() -> frozenset[tuple[int, str]]:
    """Return status and code of every error that the gateway makes with both written down."""
    return frozenset(
        (status, str(code))
        for status, code in _made("producer/gateway", _API_CALLS)
        if isinstance(status, int) and code is not None
    )


def is_written(code: str) -> bool:
    """Tell whether a text stands in the sources of worker or producer."""
    return any(f'"{code}"' in path.read_text() for path in _sources("worker", "producer"))


def _sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def _made(folder: str, calls: dict[str, int]) -> Iterator[tuple[object, object]]:
    """Yield the first argument of each such call in a folder, and its code; None if computed."""
    everywhere = _names(_sources("worker", "producer/gateway/wire"))
    for path in _sources(folder):
        known = everywhere | _names([path])
        for node in ast.walk(parsed(path.read_text())):
            if isinstance(node, ast.Call) and (name := getattr(node.func, "id", "")) in calls:
                place = calls[name]
                keywords = {each.arg: each.value for each in node.keywords}
                code = node.args[place] if len(node.args) > place else keywords.get("code")
                status = node.args[0] if node.args else None
                yield _value(status, known), _value(code, known)


def _value(node: ast.expr | None, known: dict[str, object]) -> object:
    """Return what an expression is, where it is a constant or the name of one."""
    if isinstance(node, ast.Constant):
        return node.value
    return known.get(node.id) if isinstance(node, ast.Name) else None


def _names(paths: Iterable[Path]) -> dict[str, object]:
    """Return the names that are given a constant in files, alone or with others."""
    found: dict[str, object] = {}
    for path in paths:
        for node in ast.walk(parsed(path.read_text())):
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    found |= _pairs(target, node.value)
    return found


def _pairs(target: ast.expr, value: ast.expr) -> dict[str, object]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = zip(target.elts, value.elts, strict=False)
        return {name: each for pair in pairs for name, each in _pairs(*pair).items()}
    if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
        return {target.id: value.value}
    return {}
