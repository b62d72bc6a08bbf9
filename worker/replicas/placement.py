"""The placement of a host's workers: which GPUs, cores and port each of them has.

All that is shared out is cut into runs of neighbours, one for each worker. Cores lie in the order
of their NUMA nodes, as GPUs usually do, and the threads of one core side by side.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.start_check import visible_gpus
from tokenbus.producer.serving.served_child import ChildCommand
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.settings import WorkerSettings

T = TypeVar("T")

PART = "worker"
_CPUS = Path("/sys/devices/system/cpu")
_MAX_PORT = 65_535


def replica_commands(settings: WorkerSettings, words: Sequence[str]) -> dict[str, ChildCommand]:
    """Return the commands of a host's workers by name: `words`, and what each has of the host.

    A single worker has all of it. Several have a GPU each, or as many as their ranks, an equal
    share of the cores, and the metrics ports from the one that is set on.
    Raises: SettingsInvalid where there are too few GPUs or ports.
    """
    replicas, port = settings.replicas, settings.metrics_port
    if replicas == 1:
        return {PART: ChildCommand(tuple(words), PART)}
    if port is not None and port + replicas - 1 > _MAX_PORT:
        raise SettingsInvalid(f"metrics_port: {port} and {replicas - 1} above it are too high")
    gpus, cores = _gpus(settings), ordered_cores()
    commands = {}
    for number in range(replicas):
        own = ["--replicas=1"] + ([] if port is None else [f"--metrics-port={port + number}"])
        devices = ",".join(_share(gpus, number, replicas))
        commands[f"{PART}-{number}"] = ChildCommand(
            (*words, *own),
            PART,
            {"CUDA_VISIBLE_DEVICES": devices} if devices else {},
            tuple(_share(cores, number, replicas)),
        )
    return commands


def _gpus(settings: WorkerSettings) -> list[str]:
    """Name the GPUs that the workers take together, none where they run on CPUs.

    Raises: SettingsInvalid.
    """
    config, replicas = settings.engine_config(), settings.replicas
    if not isinstance(config, EngineConfig) or config.device == "cpu":
        return []
    device = config.device
    if device not in ("auto", "cuda"):
        raise SettingsInvalid(f"device: {device} is one, and {replicas} replicas need one each")
    visible = visible_gpus()
    if not visible and device == "auto":
        return []
    needed = replicas * config.tensor_parallel
    if len(visible) < needed:
        raise SettingsInvalid(
            f"replicas: {replicas} need {needed} GPUs, and {len(visible)} can be seen;"
            " CUDA_VISIBLE_DEVICES names those that may be used"
        )
    return list(visible[:needed])


def ordered_cores(cpus: Path = _CPUS) -> list[int]:
    """List the cores that this process may use; none where the system binds no process to any."""
    if not hasattr(os, "sched_setaffinity"):
        return []

    def place(core: int) -> tuple[int, int, int]:
        folder = cpus / f"cpu{core}"
        nodes = [int(found.name.removeprefix("node")) for found in folder.glob("node[0-9]*")]
        try:
            whole = int((folder / "topology" / "core_id").read_text())
        except (OSError, ValueError):
            whole = core
        return (min(nodes, default=0), whole, core)

    return sorted(os.sched_getaffinity(0), key=place)


def _share(things: Sequence[T], number: int, of: int) -> Sequence[T]:
    """Return the run of things that is the share with that number."""
    return things[len(things) * number // of : len(things) * (number + 1) // of]
