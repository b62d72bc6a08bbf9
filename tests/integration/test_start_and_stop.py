"""How a worker starts, refuses to start and stops."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from safetensors.torch import load_file, save_file
from workers.null_workers import command, follow, null_settings, until, worker, worker_process

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.producer.errors import ServerUnreachable, UrlInvalid
from tokenbus.worker.errors import EngineStartFailed
from tokenbus.worker.supervisor import Worker, run_worker

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.scripts import Scripts


async def test_unreachable_server_is_one_clear_error_without_the_password() -> None:
    """Nobody listens: after some tries the worker ends with the URL, its password hidden."""
    url = "redis://user:very-secret@127.0.0.1:1/0"
    async with worker_process("p", url, connect_timeout_s=1) as started:
        async with asyncio.timeout(PATIENCE_S):
            assert started.process.stderr is not None
            output = (await started.process.stderr.read()).decode()
        assert await started.wait() == 1
    [line] = [line for line in output.splitlines() if "127.0.0.1:1" in line]
    assert "***" in line
    assert "very-secret" not in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize("num_publishers", [0, 1])
async def test_worker_serves_though_its_log_is_full(
    client: AsyncClient, redis_url: str, pool: str, num_publishers: int
) -> None:
    """No line of its log, nor of its publishers', is worth a job."""
    full = os.open("/dev/full", os.O_WRONLY)
    given = {"log_level": "debug", "publishers": num_publishers}
    async with worker_process(pool, redis_url, stderr=full, **given) as started:
        os.close(full)
        job = await client.submit("hello", max_tokens=3)
        await follow(client, job)
        started.send(signal.SIGTERM)
        assert await started.wait() == 0


async def test_worker_gives_up_when_the_server_stays_away(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A server lost for longer than the outage timeout ends the worker with ServerUnreachable."""
    settings = null_settings(pool, redis_url, outage_timeout_s=1.5, call_timeout_s=1)
    running = Worker(settings)
    main = asyncio.create_task(running.run())
    await until(lambda: running.stats is not None)
    job = await client.submit("hello", max_tokens=3)
    await follow(client, job)
    # Longer than the worker may need to notice.
    await command(scripts, "CLIENT", "PAUSE", round(2000 * PATIENCE_S), "WRITE")
    try:
        with pytest.raises(ServerUnreachable):
            async with asyncio.timeout(PATIENCE_S):
                await main
    finally:
        await command(scripts, "CLIENT", "UNPAUSE")


def test_private_server_is_refused_with_the_hint() -> None:
    """A worker of its own process cannot share the one-process server."""
    with pytest.raises(UrlInvalid, match="embedded:///path"):
        run_worker(null_settings("p", "embedded://"))


async def test_engine_that_does_not_start_ends_the_worker(redis_url: str, pool: str) -> None:
    """What keeps the engine from starting is raised by the start of the worker."""
    settings = null_settings(pool, redis_url, num_pages=2, null_tokens_per_s=1e6)
    broken = settings.model_copy(update={"engine_start_timeout_s": 0.001})
    with pytest.raises(EngineStartFailed, match="not ready"):
        async with Worker(broken):
            pytest.fail("the worker started")


async def test_checkpoint_that_cannot_be_read_ends_the_worker(
    redis_url: str, pool: str, tmp_path: Path
) -> None:
    """A worker names the tensor that it would have had to cast without its scale, and ends."""
    TinyModel(tmp_path)
    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, weights)
    settings = {"engine": "paged", "model": str(tmp_path), "device": "cpu"}
    with pytest.raises(ModelUnsupported, match=f"{name} is stored as float8_e4m3fn"):
        async with worker(pool, redis_url, **settings):
            pytest.fail("the worker started")


async def test_stop_during_the_start_ends_at_once(pool: str) -> None:
    """A worker that is asked to stop while it still looks for its server ends in order."""
    settings = null_settings(pool, "redis://127.0.0.1:1/0", connect_timeout_s=3600)
    starting = Worker(settings)
    main = asyncio.create_task(starting.run())
    await asyncio.sleep(0)
    starting.request_stop()
    async with asyncio.timeout(PATIENCE_S):
        await main


async def test_idle_worker_that_is_stopped_has_left_and_is_not_lost(
    scripts: Scripts, redis_url: str, pool: str
) -> None:
    """It has nothing to drain, and says that it leaves before it does; no scan misses it."""
    async with worker(pool, redis_url):
        pass
    await scripts.lease.scan()
    assert await command(scripts, "ZCARD", scripts.keys.of("lost")) == 0
    assert await command(scripts, "SCARD", scripts.keys.of("workers")) == 0


async def test_status_shows_the_gauges_of_a_live_worker(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A worker shows pages, jobs and counters under its name, for as long as its lease."""
    async with worker(pool, redis_url) as running:
        job = await client.submit("hello", max_tokens=3)
        await follow(client, job)
        key = scripts.keys.of("status", running.name)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                raw = await command(scripts, "GET", key)
                status = json.loads(raw) if raw else {}
                if status.get("counters", {}).get("jobs_finished") == 1:
                    break
        assert status["total_pages"] == 4096
        assert status["engine"]["generated_tokens_total"] == 3
    assert await command(scripts, "EXISTS", key) == 0


def test_worker_process_never_imports_cuda() -> None:
    """The process that talks to the queue initialises no GPU."""
    code = (
        "import sys, tokenbus.worker.supervisor\n"
        "torch = sys.modules.get('torch')\n"
        "print(torch is None or not torch.cuda.is_initialized())"
    )
    output = subprocess.run(
        [sys.executable, "-P", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    )
    assert output.stdout.strip() == "True"
