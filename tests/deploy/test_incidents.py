"""Incidents, made for real under a real Prometheus: alerts fire, and the board has its figures."""

from __future__ import annotations

import json
import re
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from house.shell import Newcomer
from patience import PATIENCE_S
from redis import Redis
from scaling.prometheus import Prometheus, prometheus
from servers.ports import free_port

from tokenbus.producer import Client
from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    from tokenbus.producer.server.embedded import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]
RULES = yaml.safe_load((ROOT / "deploy" / "observability" / "rules.yml").read_text())
BOARD: dict[str, Any] = json.loads(
    (ROOT / "deploy" / "observability" / "grafana" / "boards" / "pool.json").read_text()
)
# Of the panels, what needs a gateway or tells of what does not happen here.
ELSEWHERE = {"Requests of gateways", "First byte at gateways", "Open requests", "Prefix cache"}

pytestmark = [pytest.mark.slow, pytest.mark.processes]


@dataclass(slots=True)
class Watched:
    """A pool of two workers and a control service, and a Prometheus that reads them each second."""

    server: EmbeddedServer
    shell: Newcomer
    workers: list[subprocess.Popen[str]]
    prometheus: Prometheus

    def firing(self) -> set[str]:
        """Return the alerts that fire."""
        alerts = self.prometheus.ask("alerts")["alerts"]
        return {each["labels"]["alertname"] for each in alerts if each["state"] == "firing"}

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for an event; fails after far more than it takes."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, self.prometheus.ask("alerts")
            time.sleep(0.2)


def _rules(folder: Path) -> Path:
    """Write the rules with waits of a second, which is how often they are looked at here."""
    for group in RULES["groups"]:
        for rule in group["rules"]:
            rule["for"] = "1s"
    path = folder / "rules.yml"
    path.write_text(yaml.safe_dump(RULES))
    return path


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """Start the pool and what watches it."""
    server = start_private()
    ports = [free_port() for _ in range(3)]
    variables = {"TOKENBUS_REDIS_URL": server.url, "TOKENBUS_NULL_TOKENS_PER_S": "20"}
    with (
        prometheus(tmp_path, ports, rules=_rules(tmp_path)) as watcher,
        Newcomer(tmp_path / "home", variables=variables) as shell,
    ):
        shell.type(f"tokenbus control --metrics-port {ports[2]}")
        workers = []
        for port in ports[:2]:
            # Two jobs at a time: what comes more waits.
            shell.type(f"tokenbus worker --engine null --max-num-seqs 2 --metrics-port {port}")
            workers.append(shell.last)
        yield Watched(server, shell, workers, watcher)
    server.close()


def _answers(watched: Watched, query: str) -> bool:
    try:
        return bool(watched.prometheus.ask("query", query=query)["result"])
    except OSError:
        return False


def test_alerts_fire_in_the_incidents_that_they_are_for(watched: Watched) -> None:
    """A quiet pool wakes nobody; then each thing goes wrong, and its alert says so."""
    watched.until(lambda: _answers(watched, 'tokenbus_pool_workers{phase="ready"} == 2'))
    with Client.connect(watched.server.url) as client, Redis.from_url(watched.server.url) as redis:
        client.result(client.submit("quiet", max_tokens=3))
        watched.until(lambda: _answers(watched, "tokenbus_jobs_total > 0"))
        assert watched.firing() == set()

        # A hundred jobs of 40 s each at four seats: far more than a minute's work.
        client.submit_many([{"prompt": "x", "max_tokens": 800, "ignore_eos": True}] * 100)
        watched.until(lambda: "TokenbusBacklog" in watched.firing())
        _assert_board_has_figures(watched)
        redis.xadd(Keys("default").of("inbox"), {"request": "no JSON"})
        watched.until(lambda: "TokenbusDeadLetters" in watched.firing())

        watched.workers[0].send_signal(signal.SIGKILL)
        watched.until(lambda: "TokenbusWorkerLost" in watched.firing())
        assert "TokenbusNoWorker" not in watched.firing()
        watched.workers[1].send_signal(signal.SIGKILL)
        watched.until(lambda: "TokenbusNoWorker" in watched.firing())

        redis.config_set("maxmemory", int(redis.info("memory")["used_memory"] * 1.05))
        watched.until(lambda: "TokenbusServerFull" in watched.firing())
        redis.config_set("maxmemory", 0)
        watched.shell.type("tokenbus pause")
        watched.until(lambda: "TokenbusPaused" in watched.firing())
        assert "TokenbusServerDown" not in watched.firing()
    watched.server.close()
    watched.until(lambda: "TokenbusServerDown" in watched.firing())


def _assert_board_has_figures(watched: Watched) -> None:
    """Every panel of what happens here shows something."""
    for panel in BOARD["panels"]:
        if panel["title"] in ELSEWHERE:
            continue
        for target in panel["targets"]:
            query = target["expr"].replace("$__rate_interval", "30s")
            query = re.sub(r"\$pool", ".*", query)
            watched.until(lambda query=query: _answers(watched, query))  # type: ignore[misc]
