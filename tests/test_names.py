"""One word per idea: no class name twice, and no name of a word that was given up."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from itertools import pairwise
from pathlib import Path

from house.modules import Tree

# Words that stood for several ideas, or for one that the field has a word for. Keys of Redis,
# settings, metrics and events keep theirs, as the texts they are.
GIVEN_UP = set(
    """
    custody ledger intake keeper clearance notices beacon roster desk press pump manuscript composer
    account ear handoff handoffs chains bell bells lift undo forget rider riders journey journeys
    hooks nobody
    """.split()  # noqa: SIM905 - one word after the other is easier to look through
)
GIVEN_UP_PAIRS = {("home", "process"), ("raw", "wire")}
# Words that mean something else in other rooms.
GIVEN_UP_IN = {
    "board": ("engine/", "kernels/"),
    "draft": ("engine/chat", "worker/jobs"),
    "pace": ("worker/publishing",),
    "settle": ("engine/", "producer/", "worker/"),
    "settled": ("engine/", "producer/", "worker/"),
    "stage": ("worker/bench", "engine/bench"),
}
# A part of the worker; with a word before it, it is plain English.
GIVEN_UP_ALONE = {"outputs": ("worker",)}


@cache
def _modules() -> list[tuple[str, ast.Module]]:
    return [(module.path, module.tree) for module in Tree.read().modules.values()]


def _names(module: str, tree: ast.Module) -> set[str]:
    """Return a module's own names, its folders' and those of its classes, functions, attributes."""
    names = set(Path(module).with_suffix("").parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        if isinstance(node, ast.ClassDef | ast.Module):
            for line in node.body:
                if not isinstance(line, ast.Assign | ast.AnnAssign):
                    continue
                names |= {
                    target.id
                    for target in ast.walk(line)
                    if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
                }
    return names


def _words(name: str) -> list[str]:
    """Split a name in snake or camel case into its words."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _is_given_up(module: str, name: str) -> bool:
    words = _words(name)
    if GIVEN_UP & set(words) or GIVEN_UP_PAIRS & set(pairwise(words)):
        return True
    if len(words) == 1 and module.startswith(GIVEN_UP_ALONE.get(words[0], ())):
        return True
    return any(module.startswith(GIVEN_UP_IN.get(word, ())) for word in words)


def test_class_name_stands_for_one_thing() -> None:
    """A class is defined once over all packages, so that its name says which one is meant."""
    places = defaultdict(list)
    for module, tree in _modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_given_up_word_is_no_name() -> None:
    """A module, class, function or attribute is called by the word of docs/words.md."""
    found = {
        f"{module}: {name}"
        for module, tree in _modules()
        for name in _names(module, tree)
        if _is_given_up(module, name)
    }
    assert found == set()


def test_words_are_found_in_names_of_either_case() -> None:
    """Snake and camel case are taken apart, and a word inside another is not one."""
    for name in ("Ledger", "_PageLedger", "num_pump", "page_ledger", "HomeProcess", "raw_wire"):
        assert _is_given_up("worker/a.py", name), name
    for name in ("doorbell", "compression", "heard", "chain_hash", "accounts_for", "WebhookState"):
        assert not _is_given_up("worker/a.py", name), name
    assert _is_given_up("worker/publishing/a.py", "pace_s")
    assert not _is_given_up("engine/null/null_engine.py", "_pace")
    assert _is_given_up("engine/parallel/a.py", "RankBoard")
    assert not _is_given_up("producer/gateway/board/a.py", "BoardRole")
    assert _is_given_up("worker/jobs/outputs.py", "outputs")
    assert not _is_given_up("worker/jobs/page_budget.py", "expected_outputs")
