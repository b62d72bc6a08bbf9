"""Which GPUs, cores and ports the workers of a host have."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from tokenbus.engine import start_check
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.replicas import placement
from tokenbus.worker.replicas.placement import ordered_cores, replica_commands
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.serving.served_child import ChildCommand


def _placed(
    monkeypatch: pytest.MonkeyPatch, gpus: int = 0, cores: int = 0, **values: Any
) -> dict[str, ChildCommand]:
    """Place workers on a host with so many GPUs and cores."""
    names = tuple(map(str, range(gpus)))
    monkeypatch.setattr(placement, "visible_gpus", lambda: names)
    monkeypatch.setattr(placement, "ordered_cores", lambda: list(range(cores)))
    return replica_commands(WorkerSettings.load(**values), ("worker",))


def test_single_worker_has_the_host_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said of GPUs, cores or ports: the worker's own settings hold."""
    [(name, command)] = _placed(monkeypatch, 2, 8, metrics_port=9000).items()
    assert (name, command.words, command.environment, command.cores) == (
        "worker",
        ("worker",),
        {},
        (),
    )


def test_each_replica_has_gpu_cores_and_port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU each in their order, equal runs of the cores, the ports from the one that is set."""
    placed = _placed(monkeypatch, 4, 9, replicas=2, metrics_port=9000)
    assert list(placed) == ["worker-0", "worker-1"]
    assert [each.environment for each in placed.values()] == [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "1"},
    ]
    assert [each.cores for each in placed.values()] == [(0, 1, 2, 3), (4, 5, 6, 7, 8)]
    assert [each.words for each in placed.values()] == [
        ("worker", "--replicas=1", "--metrics-port=9000"),
        ("worker", "--replicas=1", "--metrics-port=9001"),
    ]
    assert {each.part for each in placed.values()} == {"worker"}


@pytest.mark.parametrize("values", [{"device": "cpu"}, {"engine": "null"}])
def test_replicas_on_cpus_share_the_cores_alone(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no GPU is used, none is assigned, however many there are."""
    placed = _placed(monkeypatch, 1, 4, replicas=2, **values)
    assert [each.environment for each in placed.values()] == [{}, {}]
    assert [each.cores for each in placed.values()] == [(0, 1), (2, 3)]


def test_groups_of_ranks_have_neighbouring_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each replica has as many GPUs as ranks; what is left over nobody gets."""
    placed = _placed(monkeypatch, 5, 8, replicas=2, tensor_parallel=2)
    assert [each.environment for each in placed.values()] == [
        {"CUDA_VISIBLE_DEVICES": "0,1"},
        {"CUDA_VISIBLE_DEVICES": "2,3"},
    ]


def test_more_replicas_than_cores_share_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose share of the cores is none is bound to none."""
    placed = _placed(monkeypatch, 0, 1, replicas=2)
    assert [each.cores for each in placed.values()] == [(), (0,)]


@pytest.mark.parametrize(
    ("gpus", "values", "told"),
    [
        (1, {"replicas": 2}, "replicas: 2 need 2 GPUs, and 1 can be seen"),
        (3, {"replicas": 2, "tensor_parallel": 2}, "replicas: 2 need 4 GPUs, and 3 can be seen"),
        (0, {"replicas": 2, "device": "cuda"}, "and 0 can be seen"),
        (4, {"replicas": 2, "device": "cuda:1"}, "device: cuda:1 is one"),
        (0, {"replicas": 2, "metrics_port": 65_535}, "metrics_port"),
    ],
)
def test_host_that_is_too_small_is_told(
    gpus: int, values: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that cannot be carried out here ends the start by its name."""
    with pytest.raises(SettingsInvalid, match=told):
        _placed(monkeypatch, gpus, 4, **values)


def test_cores_lie_in_the_order_of_nodes_and_whole_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neighbours share a node, and the two threads of a core are not parted."""
    nodes_and_cores = {0: (0, 0), 1: (1, 0), 2: (0, 1), 3: (1, 1), 4: (0, 0), 5: (1, 0)}
    for cpu, (node, core) in nodes_and_cores.items():
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / f"node{node}").touch()
        (tmp_path / f"cpu{cpu}" / "topology" / "core_id").write_text(f"{core}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(nodes_and_cores) | {6})
    assert ordered_cores(tmp_path) == [0, 4, 2, 6, 1, 5, 3]


@pytest.mark.parametrize(
    ("visible", "found"),
    [(None, ("0", "1", "2")), ("2, GPU-ab ,", ("2", "GPU-ab")), ("-1", ()), ("", ())],
)
def test_gpus_that_may_be_used_are_named(
    visible: str | None, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`CUDA_VISIBLE_DEVICES` names them, by number or by id; without it the driver counts them."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(start_check, "_torch_speaks_to_gpus", lambda: True)
    monkeypatch.setattr(start_check, "_loads", lambda _: True)
    monkeypatch.setattr(start_check, "_num_gpus", lambda: 3)
    assert start_check.visible_gpus() == found
