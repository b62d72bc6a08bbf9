"""`tokenbus worker --replicas`: the workers of a host under one command, as operators see them."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import psutil
import pytest
from patience import PATIENCE_S
from servers.ports import free_port
from workers.null_workers import command, expected_text, follow, worker_process

from tokenbus.producer.client.worker_status import WorkerPhase
from tokenbus.producer.commands.watching.status import host_of

if TYPE_CHECKING:
    from workers.null_workers import Story, WorkerProcess

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.client.worker_status import WorkerStatus

NUM_TOKENS = 90
# Of the jobs of a test each replica has room for half, and none has ended when the last begins.
SIZES: dict[str, Any] = {"replicas": 2, "max_num_seqs": 4, "null_tokens_per_s": 25}
LEASE: dict[str, Any] = {"lease_ttl_s": 1, "renew_interval_s": 0.3}


async def _ready(client: AsyncClient, other_than: frozenset[str] = frozenset()) -> list[str]:
    """Wait for two workers that can run jobs, none of them of those names."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            names = (await client.status()).ready
            if len(names) == 2 and not other_than & set(names):
                return list(names)
            await asyncio.sleep(0.02)


async def _board(client: AsyncClient) -> list[asyncio.Task[Story]]:
    """Submit as many jobs as two replicas can run, and read them."""
    jobs = [
        await client.submit("x" * 10, seed=seed, max_tokens=NUM_TOKENS)
        for seed in range(2 * SIZES["max_num_seqs"])
    ]
    return [asyncio.create_task(follow(client, job)) for job in jobs]


async def _both_busy(client: AsyncClient) -> tuple[WorkerStatus, ...]:
    """Wait until each replica runs its half of the jobs."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            workers = (await client.status()).details
            if [worker.held_jobs for worker in workers] == 2 * [SIZES["max_num_seqs"]]:
                return workers
            await asyncio.sleep(0.02)


async def _all_drain(client: AsyncClient) -> None:
    """Wait until all workers tell that they drain."""
    async with asyncio.timeout(PATIENCE_S):
        while any(  # noqa: ASYNC110 -- no event tells
            worker.phase is not WorkerPhase.DRAINING for worker in (await client.status()).details
        ):
            await asyncio.sleep(0.02)


async def _arrive(readers: list[asyncio.Task[Story]]) -> list[Story]:
    """Wait for all ends; each text is that of the unbroken run."""
    stories = await asyncio.gather(*readers)
    for seed, story in enumerate(stories):
        assert story.reason == "length"
        assert story.text == expected_text(seed, NUM_TOKENS)
    return list(stories)


def _workers(launcher: WorkerProcess) -> list[psutil.Process]:
    """Return the worker processes, in the order of their numbers."""
    found = psutil.Process(launcher.process.pid).children()
    return sorted(found, key=lambda process: process.create_time())


def _phase(port: int) -> str:
    """Return the phase that the probe at a port tells."""
    with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=PATIENCE_S) as reply:
        phase: str = json.load(reply)["phase"]
        return phase


async def test_one_command_runs_two_workers_and_drains_both(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """Two workers of this host share the jobs, each with its probes; SIGTERM lets all jobs end."""
    port = free_port(SIZES["replicas"])
    async with worker_process(pool, redis_url, metrics_port=port, **SIZES) as launcher:
        names = await _ready(client)
        assert {host_of(name) for name in names} == {socket.gethostname()}
        readers = await _board(client)
        await _both_busy(client)
        for each in (port, port + 1):
            assert await asyncio.to_thread(_phase, each) == "ready"
        processes = psutil.Process(launcher.process.pid).children(recursive=True)
        launcher.send(signal.SIGTERM)
        stories = await _arrive(readers)
        assert all(story.epochs == {1} for story in stories)
        assert await launcher.wait() == 0
        _, alive = await asyncio.to_thread(psutil.wait_procs, processes, PATIENCE_S)
        assert not alive


@pytest.mark.slow
async def test_replica_that_is_killed_comes_back(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """SIGKILL of each worker and of an engine: jobs go on, and two workers are there again."""
    async with worker_process(pool, redis_url, **SIZES, **LEASE) as launcher:
        seen = frozenset(await _ready(client))
        for number in range(2):
            readers = await _board(client)
            await _both_busy(client)
            _workers(launcher)[number].kill()
            await _arrive(readers)
            names = await _ready(client)
            assert len(seen & set(names)) <= 1
        readers = await _board(client)
        await _both_busy(client)
        [engine] = [
            child
            for child in _workers(launcher)[0].children()
            if "tokenbus.worker.engine.process" in child.cmdline()
        ]
        engine.kill()
        await _arrive(readers)
        assert len(await _ready(client)) == 2
        launcher.send(signal.SIGTERM)
        assert await launcher.wait() == 0


@pytest.mark.slow
async def test_killed_command_takes_its_workers_with_it(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """SIGKILL of the launcher leaves no worker and no engine; its jobs go on at another."""
    async with worker_process(pool, redis_url, **SIZES, **LEASE) as launcher:
        seen = frozenset(await _ready(client))
        readers = await _board(client)
        await _both_busy(client)
        processes = psutil.Process(launcher.process.pid).children(recursive=True)
        launcher.send(signal.SIGKILL)
        await launcher.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, processes, PATIENCE_S)
        assert not alive
    async with worker_process(pool, redis_url, **SIZES, **LEASE) as launcher:
        await _ready(client, other_than=seen)
        await _arrive(readers)


@pytest.mark.slow
async def test_second_signal_ends_every_drain(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """SIGTERM twice hands back what all replicas hold, and they end in order."""
    slow = SIZES | {"null_tokens_per_s": 1, "drain_deadline_s": 3600}
    async with worker_process(pool, redis_url, **slow) as launcher:
        await _ready(client)
        readers = await _board(client)
        await _both_busy(client)
        launcher.send(signal.SIGTERM)
        # Two signals at once may arrive as one.
        await _all_drain(client)
        launcher.send(signal.SIGTERM)
        assert await launcher.wait() == 0
        assert await command(client.scripts, "HGET", client.scripts.keys.of("load"), "jobs") == b"8"
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


@pytest.mark.slow
async def test_replica_that_cannot_start_ends_the_command_with_its_reason(pool: str) -> None:
    """What a worker cannot use is told once, by the code of wrong input."""
    given = {"replicas": 2, "num_pages": 2}
    async with worker_process(pool, "redis://127.0.0.1:1/0", **given) as launcher:
        assert launcher.process.stderr is not None
        told = (await launcher.process.stderr.read()).decode().splitlines()
        assert await launcher.wait() == 2
    assert any("num_pages: 2 are too few" in line for line in told)
