"""The examples of web backends and of other languages run as they stand, against one worker."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlencode

import pytest
from patience import PATIENCE_S
from redis import Redis
from servers.ports import free_port
from workers.forked_command import forked_command

from tokenbus.producer.client.blocking import Client
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def bus() -> Iterator[str]:
    """Run a server and a worker that takes its time; give the URL."""
    server = start_private()
    # Nobody reads what it says.
    quiet = {"TOKENBUS_LOG_LEVEL": "error", "TOKENBUS_NULL_TOKENS_PER_S": "100"}
    environment = {"TOKENBUS_REDIS_URL": server.url} | quiet
    with forked_command("worker", "--engine", "null", environment=environment):
        yield server.url
    server.close()


class Backend:
    """A backend of the examples as its users start it."""

    def __init__(self, name: str, url: str) -> None:
        self.port = free_port()
        env = os.environ | {"TOKENBUS_REDIS_URL": url, "PORT": str(self.port)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", EXAMPLES / name], env=env, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> Self:
        """Wait until it listens."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self._process.poll() is None, "the example ended"
                assert time.monotonic() < deadline, "the example does not listen"
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def ask(
        self, method: str, path: str, body: str | None = None, **headers: str
    ) -> http.client.HTTPResponse:
        """Send a request and return the response, its body unread."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        return connection.getresponse()


def _events(response: http.client.HTTPResponse, until: int | None = None) -> list[tuple[int, str]]:
    """Read events as (id, text) to the end, or until one with an id of at least `until`."""
    seen = []
    cursor = 0
    for raw in response:
        name, _, value = raw.decode().rstrip("\n").partition(": ")
        if name == "id":
            cursor = int(value)
        elif name == "data":
            seen.append((cursor, json.loads(value)["text"]))
            if until is not None and cursor >= until:
                break
    return seen


@pytest.mark.skipif(shutil.which("curl") is None, reason="the lines are curl's")
@pytest.mark.parametrize("name", ["fastapi_sse.py", "flask_view.py"])
def test_lines_of_curl_get_an_answer(bus: str, name: str) -> None:
    """What the head of an example says to type works, copied from there."""
    source = (EXAMPLES / name).read_text()
    lines = re.findall(r"^    (curl .*)$", source, re.MULTILINE)
    assert len(lines) == 2
    job = ""
    with Backend(name, bus) as backend:
        for line in lines:
            typed = re.sub(r"localhost:\d+", f"127.0.0.1:{backend.port}", line)
            done = subprocess.run(
                ["/bin/sh", "-c", f"{typed.replace('<job_id>', job)} --fail"],
                capture_output=True, text=True, timeout=PATIENCE_S,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            assert done.stdout
            job = json.loads(done.stdout)["job_id"] if "job_id" in done.stdout[:12] else job


def test_fastapi_relay_resumes_after_the_last_event_id(bus: str) -> None:
    """A browser that lost its connection gets the rest from its last event on; 404 if unknown."""
    with Backend("fastapi_sse.py", bus) as backend:
        body = json.dumps({"prompt": "rain", "max_tokens": 40})
        response = backend.ask("POST", "/jobs", body, Content_Type="application/json")
        assert response.status == 202
        path = f"/jobs/{json.load(response)['job_id']}/events"
        before = backend.ask("GET", path)
        assert before.headers["Content-Type"].startswith("text/event-stream")
        seen = _events(before, until=5)
        before.close()
        seen += _events(backend.ask("GET", path, Last_Event_ID=str(seen[-1][0])))
        with Client.connect(bus) as client:
            result = client.result(path.split("/")[2], timeout_s=PATIENCE_S)
        assert "".join(text for _, text in seen) == result.text
        assert seen[-1] == (40, "")
        assert backend.ask("GET", "/jobs/nobody/events").status == 404


def test_fastapi_relay_leaves_no_subscription_behind(bus: str) -> None:
    """Ten browsers close amid an answer: soon nobody listens to it any more."""
    with Backend("fastapi_sse.py", bus) as backend, Client.connect(bus) as client:
        job = client.submit("rain", max_tokens=8000, ignore_eos=True)  # 80 s
        answers = [backend.ask("GET", f"/jobs/{job.job_id}/events") for _ in range(10)]
        for answer in answers:
            _events(answer, until=1)
            answer.close()
        with Redis(unix_socket_path=bus.removeprefix("unix://")) as redis:
            deadline = time.monotonic() + PATIENCE_S
            while redis.pubsub_numsub(job.channel)[0][1]:
                assert time.monotonic() < deadline, "a subscription was left behind"
                time.sleep(0.02)
        assert client.cancel(job)


def test_flask_views_stream_and_take_batches(bus: str) -> None:
    """One view streams text, the other submits many prompts and refuses the wrong one alone."""
    with Backend("flask_view.py", bus) as backend:
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        response = backend.ask("POST", "/answer", urlencode({"prompt": "rain"}), **form)
        assert len(response.read().decode()) > 64
        prompts = json.dumps(["one", 2, "three"])
        response = backend.ask("POST", "/batch", prompts, Content_Type="application/json")
        first, second, third = json.load(response)
        assert first["text"]
        assert third["text"]
        assert "prompt" in second["error"]


def _run(*command: str | Path, **env: str) -> str:
    run = subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_redis_cli_alone_asks_and_listens(bus: str) -> None:
    """A shell script gets every event of its job, the last one the end."""
    if shutil.which("redis-cli") is None:
        pytest.skip("no redis-cli on PATH")
    cli = f"redis-cli -s {bus.removeprefix('unix://')}"
    lines = _run(EXAMPLES / "redis_cli.sh", '"rain"', REDIS_CLI=cli).splitlines()
    events = [json.loads(line) for line in lines]
    assert [i for e in events[:-1] for i in range(e["from"], e["to"] + 1)] == list(range(1, 33))
    assert events[-1]["finish"]["reason"] == "length"


def test_node_without_a_library_asks_and_listens(bus: str) -> None:
    """A few lines of JavaScript print the text and how it ended."""
    if shutil.which("node") is None:
        pytest.skip("no node on PATH")
    output = _run(
        "node", EXAMPLES / "node_subscribe.mjs", "rain", REDIS=bus.removeprefix("unix://")
    )
    text, end = output.rstrip("\n").rsplit("\n", 1)
    assert len(text) > 32
    assert end == "length after 32 tokens"
