"""A web server with every kind of worker: each process has its client, preloaded or its own."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.producer.server.embedded import EmbeddedServer

pytest.importorskip("gunicorn", reason="gunicorn is not installed")

NUM_WORKERS = 2
APP = """
import json, os, sys
from tokenbus.producer import Client

bus = Client.connect(os.environ["BUS_URL"], os.environ["BUS_POOL"])
connected_in = os.getpid()


def app(environ, start_response):
    job = bus.submit("hello")
    bus.cancel(job.job_id)
    reasons = [event.finish.reason for event in bus.stream(job.job_id) if event.finish]
    body = {"pid": os.getpid(), "connected_in": connected_in, "reasons": reasons}
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]
"""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(self._path)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Give a folder whose path is short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="tb-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def web_path(folder: Path, private_server: EmbeddedServer, kind: str) -> Iterator[str]:
    """Run gunicorn; `kind` names its workers and whether the application is loaded before forks."""
    worker, _, preload = kind.partition(" ")
    if worker == "gevent":
        pytest.importorskip("gevent", reason="gevent is not installed")
    (folder / "shop.py").write_text(APP)
    path = str(folder / "web.sock")
    command = [sys.executable, "-P", "-m", "gunicorn", "--bind", f"unix:{path}", "-k", worker]
    command += ["--threads", "4"] if worker == "gthread" else []
    command += ["--preload"] if preload else []
    command += ["--workers", str(NUM_WORKERS), "--log-level", "error", "--chdir", str(folder)]
    env = os.environ | {"BUS_URL": private_server.url, "BUS_POOL": uuid.uuid4().hex}
    process = subprocess.Popen([*command, "shop:app"], env=env)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not _listens(path):
            assert process.poll() is None, "gunicorn did not start"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield path
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()


def _listens(path: str) -> bool:
    """Tell whether somebody takes connections; the path is there a moment before."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


def _get(path: str) -> dict[str, object]:
    connection = _UnixConnection(path)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.status == 200
        found: dict[str, object] = json.loads(response.read())
        return found
    finally:
        connection.close()


KINDS = ["sync preload", "gthread"]
RARE_KINDS = ["sync", "gthread preload", "gevent", "gevent preload"]


@pytest.mark.parametrize(
    "kind", [*KINDS, *(pytest.param(k, marks=pytest.mark.slow) for k in RARE_KINDS)]
)
def test_workers_of_every_kind_have_a_client(web_path: str, kind: str) -> None:
    """Each submits, cancels and streams, with the client that the master connected or its own."""
    answers: list[dict[str, object]] = []
    deadline = time.monotonic() + PATIENCE_S
    with ThreadPoolExecutor(2 * NUM_WORKERS) as threads:
        while len({answer["pid"] for answer in answers}) < NUM_WORKERS:
            assert time.monotonic() < deadline, "one worker got every request"
            answers += threads.map(_get, [web_path] * 2 * NUM_WORKERS)
    assert [answer["reasons"] for answer in answers] == [["cancelled"]] * len(answers)
    is_preloaded = [answer["pid"] != answer["connected_in"] for answer in answers]
    assert is_preloaded == ["preload" in kind] * len(answers)
