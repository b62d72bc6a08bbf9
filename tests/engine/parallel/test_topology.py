"""Ranks take the GPUs that can be seen, stay on the cores near to them, and say so."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.parallel import topology

if TYPE_CHECKING:
    from pathlib import Path

_CORES = {0: "0-3", 1: "4-7,12"}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a host of two GPUs on a NUMA node each; return the folder of its PCI devices."""
    devices, nodes = tmp_path / "devices", tmp_path / "nodes"
    for node, cores in _CORES.items():
        (devices / f"0000:1{node}:00.0").mkdir(parents=True)
        (devices / f"0000:1{node}:00.0" / "numa_node").write_text(f"{node}\n")
        (nodes / f"node{node}").mkdir(parents=True)
        (nodes / f"node{node}" / "cpulist").write_text(f"{cores}\n")
    monkeypatch.setattr(topology, "_DEVICES", devices)
    monkeypatch.setattr(topology, "_NODES", nodes)

    def properties(device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(pci_domain_id=0, pci_bus_id=0x10 + device.index, pci_device_id=0)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda *_: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    return devices


def test_ranks_take_visible_gpus_in_order(host: Path) -> None:
    """Rank and GPU have one number; too few, or one for all of them, are refused."""
    del host
    config = EngineConfig("any", device="cuda", tensor_parallel=2)
    assert [topology.device_of_rank(config, rank).index for rank in range(2)] == [0, 1]
    for refused, why in (
        (EngineConfig("any", device="cuda", tensor_parallel=4), "4 ranks need as many GPUs, 2"),
        (EngineConfig("any", device="cuda:1", tensor_parallel=2), "cuda:1 is no device of 2 ranks"),
    ):
        with pytest.raises(RequestRejected, match=why):
            topology.device_of_rank(refused, 0)


def test_places_of_ranks_are_told(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Device, node, reach and what is visible; a machine that tells no node has none."""
    cuda = torch.device("cuda", 0)
    assert topology.told(2, cuda) == (
        "rank 0 on cuda:0 H200, NUMA node 0; rank 1 on cuda:1 H200, NUMA node 1;"
        " each reads the memory of the others; CUDA_VISIBLE_DEVICES=2,5"
    )
    (host / "0000:10:00.0" / "numa_node").write_text("-1\n")
    (host / "0000:11:00.0" / "numa_node").unlink()
    monkeypatch.setattr(torch.cuda, "can_device_access_peer", lambda *_: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert topology.told(2, cuda) == (
        "rank 0 on cuda:0 H200, no NUMA node; rank 1 on cuda:1 H200, no NUMA node;"
        " no memory of peers can be read; CUDA_VISIBLE_DEVICES=unset"
    )


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux binds processes to cores")
def test_rank_stays_on_near_cores_that_it_may_use(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the node's cores those that this process has; none of them, or no node, binds it not."""
    bound: list[set[int]] = []
    allowed = set(range(2, 16))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: bound.append(cores))
    for rank in range(2):
        topology.bind_to(torch.device("cuda", rank))
    topology.bind_to(torch.device("cpu"))
    assert bound == [{2, 3}, {4, 5, 6, 7, 12}]
    allowed -= {2, 3}
    (host / "0000:11:00.0" / "numa_node").write_text("-1\n")
    for rank in range(2):
        topology.bind_to(torch.device("cuda", rank))
    assert len(bound) == 2
