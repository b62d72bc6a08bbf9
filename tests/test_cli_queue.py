"""The command line against a real server: submit, worker, status and Ctrl-C."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.forked_command import ForkedCommand, forked_command
from workers.stubs import StubWorker

from tokenbus.producer.client.blocking import Client
from tokenbus.producer.commands import cli
from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.contract.result import JobCancelled
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server.connection import make_redis
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import Iterator


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


@dataclass(frozen=True)
class _Ended:
    """A command that has ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


def _run(*args: str, stdin: str = "") -> _Ended:
    with forked_command(*args) as process:
        process.stdin.write(stdin)
        process.stdin.close()
        stdout, stderr = process.stdout.read(), process.stderr.read()
        return _Ended(process.join(), stdout, stderr)


@contextmanager
def _worker(url: str, pool: str, **environment: str) -> Iterator[ForkedCommand]:
    """Run a worker with made-up tokens, from its first pull on; kill it if it outlives the test."""
    args = ("worker", "--engine", "null", "--redis", url, "--pool", pool, "--log-format", "json")
    with forked_command(*args, environment=environment) as process:
        assert any('"worker.started"' in line for line in process.stderr)
        yield process


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
    run = _run("submit", "hello", "--max-tokens", "-1", *_target(url, pool))
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
        forked_command(
            "submit", "hello", "--max-tokens", "5000", "--json", *_target(url, pool)
        ) as process,
    ):
        job_id = json.loads(process.stdout.readline())["job"]
        process.send_signal(signal.SIGINT)
        assert process.join() == 130
        assert "Traceback" not in process.stderr.read()
        with Client.connect(url, pool=pool) as client, pytest.raises(JobCancelled):
            client.result(job_id, timeout_s=PATIENCE_S)


def test_interrupt_of_an_idle_worker_is_an_orderly_end(url: str, pool: str) -> None:
    """Ctrl-C drains; a worker with nothing to do leaves at once with code 0."""
    with _worker(url, pool) as process:
        process.send_signal(signal.SIGINT)
        assert process.join() == 0


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


def _json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_operator_looks_at_jobs_and_pauses_the_pool(
    url: str, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One paused pool, seen by every command: jobs wait, are listed, shown, cancelled, followed."""
    target = _target(url, pool)

    def run(*args: str) -> tuple[int, str, str]:
        code = cli.main([*args, *target])
        told = capsys.readouterr()
        return code, told.out, told.err

    with (
        _worker(url, pool, TOKENBUS_NULL_TOKENS_PER_S="2"),
        Client.connect(url, pool=pool) as client,
    ):
        # It runs for 1,000 s, longer than all that is asked meanwhile can take.
        running = client.submit("long", max_tokens=2000, ignore_eos=True, tenant="shop")
        next(client.stream(running))
        assert run("pause")[0] == 0
        kept = client.submit(messages=[{"role": "user", "content": "se\x9bcret"}], max_tokens=3)
        gone = client.submit("other", max_tokens=3, tenant="shop")
        listed = _json_lines(run("list", "--json")[1])
        assert [(job["job"], job["state"]) for job in listed] == [
            (running.job_id, "held"),
            (kept.job_id, "waiting"),
            (gone.job_id, "waiting"),
        ]
        assert [
            job["job"] for job in _json_lines(run("list", "--json", "--tenant", "shop")[1])
        ] == [
            running.job_id,
            gone.job_id,
        ]
        code, shown, _ = run("show", kept.job_id)
        assert (code, json.loads(shown)["state"]) == (0, "waiting")
        assert "cret" not in shown
        shown = run("show", kept.job_id, "--request")[1]
        assert "\x9b" not in shown
        assert json.loads(shown)["request"]["messages"][0]["content"] == "se\x9bcret"
        deadline = time.monotonic() + PATIENCE_S
        worker: dict[str, Any] = {}
        while not worker.get("running"):
            # The worker tells of itself once a second.
            assert time.monotonic() < deadline
            [status] = _json_lines(run("status", "--json")[1])
            [worker] = status["workers"]
        assert (status["paused"], worker["model"], worker["running"]) == (True, "null", 1)
        assert worker["used_pages"] > 0
        assert {(job["tenant"], job["job_id"]) for job in status["oldest"]} == {
            ("default", kept.job_id),
            ("shop", gone.job_id),
        }
        assert run("result", kept.job_id, "--timeout-s", "0.1")[0] == 1
        assert run("cancel", gone.job_id, "--tenant", "shop")[0] == 0
        assert run("cancel", running.job_id)[0] == 1, "another tenant's"
        assert run("cancel", running.job_id, "--tenant", "shop")[0] == 0
        assert run("result", gone.job_id, "--tenant", "shop")[::2] == (
            1,
            "tokenbus: the job was cancelled\n",
        )
        assert run("resume")[0] == 0
        code, answer, _ = run("result", kept.job_id)
        assert (code, answer.rstrip("\n")) == (0, client.result(kept).text)
        code, rest, _ = run("follow", kept.job_id, "--from", "2", "--json")
        assert code == 0
        assert [event["from"] for event in _json_lines(rest)] == [3, 4]
        assert run("show", kept.job_id)[1].count('"finish"') == 1
        # A job is complete a moment after its answer can be read.
        deadline = time.monotonic() + PATIENCE_S
        while (listed := run("list")[1:])[0]:
            assert time.monotonic() < deadline
        assert listed == ("", f"tokenbus: no such job waits or runs in pool {pool}\n")
        assert run("follow", "nobody")[::2] == (
            1,
            "tokenbus: no job nobody in this pool; it may have ended and been forgotten\n",
        )


def test_submit_into_a_pool_without_workers_says_so(url: str, pool: str) -> None:
    """Who mistypes a pool hears at once which ones have workers here; the job waits."""
    with (
        _worker(url, pool),
        forked_command("submit", "hi", *_target(url, f"{pool}-typo")) as waiting,
    ):
        told = waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert waiting.join() == 130
    assert f"no worker in pool {pool}-typo; pools with workers here: " in told
    assert pool in told.partition(": ")[2]


def test_server_that_is_away_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever waits for a server says so, for how long, and never with a password."""
    nowhere = "redis://:geheim@127.0.0.1:1/0"
    assert cli.main(["status", "--redis", nowhere]) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "tokenbus: no server at redis://***@127.0.0.1:1/0 yet, trying for 2 s"
    with forked_command("worker", "--engine", "null", "--redis", nowhere) as worker:
        line = next(line for line in worker.stderr if "server.awaited" in line)
    assert "no server at redis://***@127.0.0.1:1/0 yet, trying for 30 s" in line


def test_host_of_a_worker_is_compared_whole(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """The health check of host `vm` is not satisfied by a worker of `vm-2`."""
    server = make_redis(url)

    async def join(pool: str, worker: str) -> None:
        await StubWorker(Scripts(server, pool), worker).reconcile()
        await server.aclose()

    asyncio.run(join("hosts", "vm-2-0123456789ab"))
    for host, code in (("vm", 1), ("vm-2", 0), ("vm-2-0123456789ab", 1)):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        assert cli.main(["status", "--here", *_target(url, "hosts")]) == code


def test_dead_letter_moves_no_terminal(url: str, pool: str) -> None:
    """Control and direction characters that a tenant wrote are escaped where operators look."""
    hostile = "\x1b[2J\x9b31m\u202etxt.exe\u2066\u200f\x07"
    body = json.dumps({"prompt": hostile, "tenant": "shop", "n": hostile}, ensure_ascii=False)

    async def send() -> None:
        server = make_redis(url)
        await server.xadd(Keys(pool).of("inbox"), {"job": body})
        await server.aclose()

    with _worker(url, pool):
        asyncio.run(send())
        deadline = time.monotonic() + PATIENCE_S
        while not (listed := _run("dead", "list", *_target(url, pool)).stdout):
            assert time.monotonic() < deadline
        shown = _run("dead", "show", "--all", *_target(url, pool)).stdout
    for text in (listed, shown):
        assert not set(text) & set(hostile) - set("txt.exe[2J31m")
    assert json.loads(json.loads(shown)["body"])["prompt"] == hostile
