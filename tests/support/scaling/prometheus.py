"""A real Prometheus for tests: it reads processes of this machine, and is asked by its own API."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.parse
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from patience import PATIENCE_S
from servers.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A process that watches."""

    port: int

    def ask(self, path: str, **query: str) -> Any:
        """Ask, and return the data. Raises: OSError while it starts."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        """Return the one value of a query, None where it has none."""
        found = self.ask("query", query=query)["result"]
        return float(found[0]["value"][1]) if found else None


@contextmanager
def prometheus(
    folder: Path, ports: Sequence[int], *, every_ms: int = 1000, rules: Path | None = None
) -> Iterator[Prometheus]:
    """Run one that reads `/metrics` at some ports; skip the test where there is none."""
    command = shutil.which("prometheus")
    if command is None:
        pytest.skip("there is no prometheus that could watch")
    targets = [f"127.0.0.1:{port}" for port in ports]
    config = {
        "global": {"scrape_interval": f"{every_ms}ms", "evaluation_interval": f"{every_ms}ms"},
        "rule_files": [str(rules)] if rules else [],
        "scrape_configs": [
            {
                "job_name": "pool",
                "scrape_timeout": f"{every_ms}ms",
                "static_configs": [{"targets": targets}],
            }
        ],
    }
    file, port = folder / "prometheus.yml", free_port()
    file.write_text(yaml.safe_dump(config))
    options = [f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}"]
    options.append(f"--web.listen-address=127.0.0.1:{port}")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([command, *options], stderr=log)
        try:
            yield Prometheus(port)
        finally:
            process.kill()
            process.wait()
