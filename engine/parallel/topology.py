"""Topology: which device and which cores a rank gets, and how that is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.errors import RequestRejected

if TYPE_CHECKING:
    from tokenbus.engine.config import EngineConfig

_DEVICES = Path("/sys/bus/pci/devices")
_NODES = Path("/sys/devices/system/node")


def device_of_rank(config: EngineConfig, rank: int) -> torch.device:
    """Return the device of a rank: the GPU of its number among those that are visible, or the CPU.

    Raises: RequestRejected if there are too few GPUs, or one of them is named for all ranks.
    """
    size = config.tensor_parallel
    kind = config.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(kind)
    if size == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise RequestRejected(
            "device", f"{config.device} is no device of {size} ranks; give cuda or cpu"
        )
    count = torch.cuda.device_count()
    if count < size:
        raise RequestRejected(
            "tensor_parallel", f"{size} ranks need as many GPUs, {count} are seen"
        )
    return torch.device("cuda", rank)


def bind_to(device: torch.device) -> None:
    """Make a rank's device the current one, and stay on the cores that are near to it."""
    if device.type != "cuda":
        return
    torch.cuda.set_device(device)
    cores = _cores_near(device)
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def told(size: int, device: torch.device) -> str:
    """Tell where ranks are: devices, their nodes, and how the devices are connected."""
    if device.type != "cuda":
        return f"{size} ranks on the CPU; threads of each: {torch.get_num_threads()}"
    places = []
    for rank in range(size):
        near = torch.device("cuda", rank)
        node = _node_of(near)
        beside = "no NUMA node" if node is None else f"NUMA node {node}"
        places.append(f"rank {rank} on {near} {torch.cuda.get_device_name(near)}, {beside}")
    peers = all(
        torch.cuda.can_device_access_peer(one, other)
        for one in range(size)
        for other in range(size)
        if one != other
    )
    reach = "each reads the memory of the others" if peers else "no memory of peers can be read"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "unset")
    return "; ".join((*places, reach, f"CUDA_VISIBLE_DEVICES={visible}"))


def _node_of(device: torch.device) -> int | None:
    """Return the NUMA node of a GPU, None where the machine has none or does not tell."""
    found = torch.cuda.get_device_properties(device)
    domain, bus, slot = (
        getattr(found, f"pci_{part}_id", None) for part in ("domain", "bus", "device")
    )
    if domain is None or bus is None or slot is None:
        return None
    try:
        node = int((_DEVICES / f"{domain:04x}:{bus:02x}:{slot:02x}.0" / "numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _cores_near(device: torch.device) -> set[int] | None:
    """Return those of this process's cores that are on the node of a GPU, None for none."""
    node = _node_of(device)
    if node is None or not hasattr(os, "sched_getaffinity"):
        return None
    try:
        listed = (_NODES / f"node{node}" / "cpulist").read_text()
    except OSError:
        return None
    return (cores_of(listed) & os.sched_getaffinity(0)) or None


def cores_of(listed: str) -> set[int]:
    """Return the cores of a kernel's list, as in "0-3,8"."""
    cores: set[int] = set()
    for part in listed.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return cores
