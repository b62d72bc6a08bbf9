"""The command line against a real server: submit, worker, status and Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

from tokenbus.producer.client.blocking import Client
from tokenbus.producer.contract.result import JobCancelled
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = [sys.executable, "-P", "-m", "tokenbus.producer.commands.cli"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Run one embedded server for this file."""
    server = start_private()
    yield server.url
    server.close()


@pytest.fixture
def pool() -> str:
    """Return a pool that no other test uses."""
    return f"cli-{uuid.uuid4().hex[:12]}"


def _start(*args: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def _run(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args], input=stdin, capture_output=True, text=True, timeout=PATIENCE_S
    )


@contextmanager
def _worker(url: str, pool: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run a worker with made-up tokens, from its first pull on; kill it if it outlives the test."""
    args = ("worker", "--engine", "null", "--redis", url, "--pool", pool, "--log-format", "json")
    with _start(*args, **environment) as process:
        try:
            assert process.stderr
            assert any('"worker.started"' in line for line in process.stderr)
            yield process
        finally:
            process.kill()


def _target(url: str, pool: str) -> tuple[str, ...]:
    return ("--redis", url, "--pool", pool)


def test_submit_streams_text_or_events(url: str, pool: str) -> None:
    """The answer comes as text, or as the public events with `--json`; both end with code 0."""
    with _worker(url, pool):
        spoken = _run("submit", "hello", "--max-tokens", "5", "--seed", "1", *_target(url, pool))
        piped = _run(
            "submit", "-", "--max-tokens", "5", "--seed", "1", "--json", *_target(url, pool),
            stdin="hello",
        )  # fmt: skip
    assert (spoken.returncode, piped.returncode) == (0, 0), spoken.stderr + piped.stderr
    events = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [event["to"] for event in events][-1] == 5
    assert events[-1]["finish"]["reason"] == "length"
    assert "".join(event["text"] for event in events) + "\n" == spoken.stdout


def test_submit_names_the_field_that_is_wrong(url: str, pool: str) -> None:
    """A value that the schema refuses costs code 2 and one sentence with the field."""
    run = _run("submit", "hello", "--max-tokens", "0", *_target(url, pool))
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.count("\n") == 1
    assert "max_tokens" in run.stderr


def test_submit_of_a_job_that_expires_fails(url: str, pool: str) -> None:
    """An answer that does not come is code 1 and says what became of the job."""
    with _worker(url, pool, TOKENBUS_NULL_TOKENS_PER_S="1"):
        run = _run("submit", "hello", "--deadline-s", "0.5", *_target(url, pool))
    assert run.returncode == 1
    assert "expired" in run.stderr


def test_interrupt_of_submit_cancels_the_job(url: str, pool: str) -> None:
    """Ctrl-C leaves with code 130, without a traceback, and the job ends as cancelled."""
    with (
        _worker(url, pool, TOKENBUS_NULL_TOKENS_PER_S="5"),
        _start("submit", "hello", "--max-tokens", "5000", "--json", *_target(url, pool)) as process,
    ):
        assert process.stdout
        assert process.stderr
        job_id = json.loads(process.stdout.readline())["job"]
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_S) == 130
        assert "Traceback" not in process.stderr.read()
        with Client.connect(url, pool=pool) as client, pytest.raises(JobCancelled):
            client.result(job_id, timeout_s=PATIENCE_S)


def test_interrupt_of_an_idle_worker_is_an_orderly_end(url: str, pool: str) -> None:
    """Ctrl-C drains; a worker with nothing to do leaves at once with code 0."""
    with _worker(url, pool) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_S) == 0


def test_status_tells_whether_a_worker_lives(url: str, pool: str) -> None:
    """The health check fails without a worker, passes with one and names it."""
    without = _run("status", *_target(url, pool))
    with Client.connect(url, pool=pool) as client:
        client.submit("hello")
    with _worker(url, f"{pool}-other"):
        assert _run("status", *_target(url, pool), "--here").returncode == 1
    with _worker(url, pool, TOKENBUS_NULL_TOKENS_PER_S="1"):
        with_worker = _run("status", *_target(url, pool), "--here")
    assert without.returncode == 1
    assert "0 jobs wait" in without.stdout
    assert with_worker.returncode == 0
    assert re.search(r"at 1 workers?\n  \S+", with_worker.stdout)
