"""Boards, alerts and what Prometheus reads: they name what our processes tell."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from house.queries import read_query, unknown_parts

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "observability"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
BOARD: dict[str, Any] = json.loads((FOLDER / "grafana" / "boards" / "pool.json").read_text())
OPERATIONS = ROOT / "docs" / "operations.md"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_alert_asks_for_what_is_told(rule: dict[str, Any]) -> None:
    """Every metric and label of an alert exists, and its text names labels that are left."""
    assert unknown_parts(rule["expr"]) == []
    named, by = read_query(rule["expr"])
    told = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
    # Without a sum all labels are left.
    assert not by or told <= by
    assert named
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}


def test_operators_find_each_alert_by_its_name() -> None:
    """The page of incidents has a heading for each alert, and none for another."""
    headings = re.findall(r"(?m)^### (Tokenbus\w+)$", OPERATIONS.read_text())
    assert sorted(headings) == sorted(rule["alert"] for rule in RULES)


@pytest.mark.parametrize("panel", BOARD["panels"], ids=lambda panel: panel["title"])
def test_panel_shows_what_is_told(panel: dict[str, Any]) -> None:
    """Every query of a panel reads metrics and labels that exist; a legend those left over."""
    assert panel["targets"]
    for target in panel["targets"]:
        assert unknown_parts(target["expr"]) == []
        legend = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        _, by = read_query(target["expr"])
        assert legend <= by


def test_panels_stand_side_by_side() -> None:
    """No two panels lie over each other."""
    cells = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in BOARD["panels"]
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("max(tokenbus_pool_backlog_second)", ["tokenbus_pool_backlog_second"]),
        ('tokenbus_pool_workers{fase="ready"}', ["tokenbus_pool_workers{fase}"]),
        ("sum by (tenant) (tokenbus_pool_backlog_seconds)", ["by (tenant)"]),
        ("rate(tokenbus_ttft_seconds[5m])", ["tokenbus_ttft_seconds"]),
    ],
)
def test_wrong_name_is_found(query: str, wrong: list[str]) -> None:
    """A metric or label that nobody tells does not pass."""
    assert unknown_parts(query) == wrong


def test_prometheus_reads_the_services_that_tell() -> None:
    """Each job looks where a service of the compose file has its metrics."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    places = {
        (name, config["port"])
        for job in config["scrape_configs"]
        for config in job["dns_sd_configs"]
        for name in config["names"]
    }
    expected = set()
    for name in ("worker", "worker-cpu", "control", "gateway"):
        command = services[name]["command"]
        option = "--port" if name == "gateway" else "--metrics-port"
        expected.add((name, int(command[command.index(option) + 1])))
    assert places == expected
