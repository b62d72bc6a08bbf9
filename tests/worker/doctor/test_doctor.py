"""The doctor: finds what was broken on purpose, says what to do, and survives its patients."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import pytest
from servers.fixtures import pool
from workers.stubs import a_job, submit

from tokenbus.producer.commands.cli import main
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server.connection import make_redis
from tokenbus.producer.server.embedded import EmbeddedServer, start_private
from tokenbus.worker.doctor.finding import Finding, State, guarded
from tokenbus.worker.doctor.model_checks import model_checks
from tokenbus.worker.doctor.server_checks import _clock, server_checks
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["pool"]


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """Run a server that is broken and mended by one test alone."""
    running = start_private()
    yield running
    running.close()


async def _found(url: str, pool: str) -> dict[str, Finding]:
    return {finding.check: finding async for finding in server_checks(url, pool)}


async def test_faults_of_a_server_are_found(own_server: EmbeddedServer, pool: str) -> None:
    """No persistence, little memory, no worker for what waits, missing rights: each is told."""
    redis: Any = make_redis(own_server.url)
    well = await _found(own_server.url, pool)
    assert [well[check].state for check in ("server", "eviction", "rights", "clock", "pool")] == (
        [State.OK] * 5
    )
    assert well["persistence"].state is State.WARNING
    assert "appendonly" in well["persistence"].advice
    assert well["memory"].state is State.WARNING, "it has no bound"
    await redis.config_set("appendonly", "yes")
    await redis.config_set("appendfsync", "always")
    used = int((await redis.info("memory"))["used_memory"])
    await redis.config_set("maxmemory", int(used * 1.15))
    await redis.config_set("maxmemory", int(used * 1.15))
    found = await _found(own_server.url, pool)
    assert found["memory"].state is State.WARNING
    assert "maxmemory" in found["memory"].advice
    assert (found["persistence"].state, "takes nothing" in found["persistence"].found) == (
        State.OK,
        True,
    )
    await redis.config_set("maxmemory", 0)
    await submit(Scripts(redis, pool), a_job("waits"))
    assert (await _found(own_server.url, pool))["pool"].advice == "tokenbus worker"
    await redis.execute_command(
        *("ACL", "SETUSER", "reader", "reset", "on", ">secret", "~*", "&*"),
        *("+@read", "+@connection", "+eval", "+evalsha", "+info", "+time", "+config|get"),
        *("+subscribe", "+unsubscribe", "+pubsub|channels"),
    )
    lacking = (await _found(own_server.url.replace("unix://", "unix://reader:secret@"), pool))[
        "rights"
    ]
    assert lacking.state is State.WARNING
    assert "ACL SETUSER USER" in lacking.advice
    assert "secret" not in str(lacking)
    await redis.config_set("maxmemory", 2**30)
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    [refused] = (await _found(own_server.url, pool)).values()
    assert refused.state is State.FAILED
    assert "noeviction" in refused.found
    await redis.aclose()


@pytest.mark.parametrize(
    ("there_s", "state"),
    [(1000, State.OK), (1009, State.OK), (995, State.WARNING), (1014, State.WARNING)],
)
async def test_answer_that_comes_late_is_no_clock_that_is_off(
    monkeypatch: pytest.MonkeyPatch, there_s: int, state: State
) -> None:
    """A server, or this process, that is held up for nine seconds has told a time of them."""
    now_s = iter((1000.0, 1009.0))
    clock = SimpleNamespace(time=lambda: next(now_s))
    monkeypatch.setattr("tokenbus.worker.doctor.server_checks.time", clock)
    redis = SimpleNamespace(time=AsyncMock(return_value=(there_s, 0)))
    finding = await _clock(redis)
    assert finding.state is state
    assert (finding.found == "this machine is 0.00 s behind the server") is (state is State.OK)


def _model_findings(**settings: Any) -> dict[str, Finding]:
    given = WorkerSettings.load(**settings)
    return {finding.check: finding for finding in model_checks(given)}


def test_model_that_is_not_whole_is_found(tmp_path: Path) -> None:
    """A folder without a config, one without weights, and a name that is none."""
    (tmp_path / "empty").mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for model, told in (
        (str(tmp_path / "empty"), "without config.json"),
        (str(bare), "no *.safetensors weights"),
        (str(tmp_path / "gone"), "there is no folder or file"),
    ):
        finding = _model_findings(model=model, device="cpu")["model"]
        assert finding.state is State.FAILED
        assert told in finding.found
        assert finding.advice


def test_command_prints_and_fails_with_what_failed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """JSON has every finding; a server that is away fails the command, and hides its password."""
    monkeypatch.setenv("TOKENBUS_ENGINE", "null")
    monkeypatch.setattr(
        "tokenbus.worker.doctor.command.machine_checks",
        lambda: iter([Finding("python", State.OK, "found")]),
    )
    code = main(["doctor", "--json", "--redis", "redis://:secret@127.0.0.1:1/0"])
    printed = capsys.readouterr().out
    told = json.loads(printed)
    assert (code, told["ok"]) == (1, False)
    states = {finding["check"]: finding["state"] for finding in told["findings"]}
    assert states == {"settings": "ok", "server": "failed", "python": "ok", "model": "skipped"}
    assert "secret" not in printed


def test_check_that_raises_is_a_finding() -> None:
    """What a check stumbles over is told, and nothing else is left out."""

    def look() -> Iterator[Finding]:
        yield Finding("x", State.OK, "first")
        raise OSError("broken")

    first, second = guarded("x", look)
    assert (first.state, second.state) == (State.OK, State.FAILED)
    assert "broken" in second.found
