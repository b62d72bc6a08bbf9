"""The stand-in for the autoscaler: it reads the manifest as it is, and decides as is documented."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scaling.scaled_object import Autoscaler, ScaledObject

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "deploy/kubernetes/components/autoscaling/scaled-object.yaml"


@pytest.fixture
def scaled() -> ScaledObject:
    """Read the manifest."""
    return ScaledObject.read(MANIFEST)


def test_manifest_is_read_whole(scaled: ScaledObject) -> None:
    """Every number comes from the file, and what the stand-in does not know is refused."""
    spec = yaml.safe_load(MANIFEST.read_text())["spec"]
    assert (scaled.least, scaled.most) == (0, spec["maxReplicaCount"])
    assert scaled.polling_s == spec["pollingInterval"]
    assert scaled.cooldown_s == spec["cooldownPeriod"]
    told = [each["metadata"] for each in spec["triggers"]]
    assert [each.query for each in scaled.triggers] == [each["query"] for each in told]
    assert [str(each.threshold) for each in scaled.triggers] == [
        str(float(each["threshold"])) for each in told
    ]
    assert [each.is_of_whole for each in scaled.triggers] == [False, True, False]


def test_unknown_rules_are_refused(tmp_path: Path) -> None:
    """A manifest that says more than the stand-in does would be simulated wrongly."""
    manifest = yaml.safe_load(MANIFEST.read_text())
    behavior = manifest["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    behavior["scaleUp"]["policies"] = [{"type": "Pods", "value": 1, "periodSeconds": 60}]
    path = tmp_path / "scaled-object.yaml"
    path.write_text(yaml.safe_dump(manifest))
    with pytest.raises(ValueError, match="scaleUp"):
        ScaledObject.read(path)


def test_first_job_wakes_one_worker_and_the_backlog_asks_for_more(scaled: ScaledObject) -> None:
    """Any backlog wakes; then there are as many as begin it within the threshold, 4 at most."""
    autoscaler = Autoscaler(scaled)
    autoscaler.poll(0, [0.0, 0.0, 0.0])
    assert autoscaler.replicas == 0
    autoscaler.poll(10, [0.1, 0.0, 0.0])
    assert autoscaler.replicas == 1
    autoscaler.sync(15, 0, [32.0, 0.0, 0.0])
    assert autoscaler.replicas == 1
    # Others are started before the first is ready, and those that start ask for no more.
    autoscaler.sync(30, 0, [70.0, 0.0, 0.0])
    assert autoscaler.replicas == 3
    autoscaler.sync(45, 1, [80.0, 0.9, 1.0])
    assert autoscaler.replicas == 3
    autoscaler.sync(60, 3, [500.0, 1.0, 1.0])
    assert autoscaler.replicas == scaled.most


def test_workers_go_one_by_one_and_the_last_after_the_cooldown(scaled: ScaledObject) -> None:
    """What is free for five minutes goes, a worker a minute; what runs keeps one."""
    autoscaler = Autoscaler(scaled, replicas=4)
    autoscaler.sync(0, 4, [60.0, 1.0, 1.0])
    times: dict[int, int] = {}
    for now in range(15, 900, 15):
        autoscaler.poll(now, [0.0, 0.1, 1.0])
        autoscaler.sync(now, autoscaler.replicas, [0.0, 0.1, 1.0])
        times.setdefault(autoscaler.replicas, now)
    assert times == {4: 15, 3: 300, 2: 360, 1: 420}
    for now in range(900, 2000, 15):
        autoscaler.poll(now, [0.0, 0.0, 0.0])
        autoscaler.sync(now, autoscaler.replicas, [0.0, 0.0, 0.0])
        times.setdefault(autoscaler.replicas, now)
    assert 885 + scaled.cooldown_s <= times[0] <= 900 + scaled.cooldown_s


def test_busy_workers_stay_without_a_backlog(scaled: ScaledObject) -> None:
    """Where nothing waits, as many stay as the pages that are taken would fill."""
    autoscaler = Autoscaler(scaled, replicas=4)
    for now in range(0, 3000, 15):
        # Two and a half workers' pages, whoever has them.
        autoscaler.sync(now, autoscaler.replicas, [0.0, 2.5 / autoscaler.replicas, 1.0])
    assert autoscaler.replicas == 3


def test_figure_that_does_not_come_is_no_zero(scaled: ScaledObject) -> None:
    """A control service that is away lets no worker go."""
    autoscaler = Autoscaler(scaled, replicas=2)
    for now in range(0, 3000, 15):
        autoscaler.poll(now, [None, None, None])
        autoscaler.sync(now, 2, [None, 0.0, 0.0])
    assert autoscaler.replicas == 2


def test_sum_asks_for_its_share_each(scaled: ScaledObject) -> None:
    """A figure that is a sum asks for as many as have the threshold each, whoever is ready."""
    [*_, held] = scaled.triggers
    assert held.wanted(1, 4, 0) == 1
    assert replace(held, threshold=0.1).wanted(0.1 + 0.2, 1, 0) == 3
