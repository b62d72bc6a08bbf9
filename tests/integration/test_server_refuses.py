"""Errors that a server answers with while it is loading, demoted, out of memory or amnesiac."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from servers.wire_proxy import WireProxy
from workers.null_workers import command, expected_text, follow, leaked_keys, until, worker
from workers.stubs import until as server_says

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract.result import JobExpired
from tokenbus.producer.errors import DeadlineUnmeetable, QueueFull
from tokenbus.producer.server.embedded import start_private
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.server.embedded import EmbeddedServer

ERRORS = {
    "loading": "LOADING Valkey is loading the dataset in memory",
    "readonly": "READONLY You can't write against a read only replica.",
    "noscript": "NOSCRIPT No matching script.",
    "nogroup": "NOGROUP No such key or consumer group",
    "oom": "OOM command not allowed when used memory > 'maxmemory'.",
    "masterdown": "MASTERDOWN Link with MASTER is down",
    "clusterdown": "CLUSTERDOWN The cluster is down",
    "moved": "MOVED 1 127.0.0.1:1",
    "noreplicas": "NOREPLICAS Not enough good replicas to write.",
}
# Most of these are in `test_answers.py` too, where every call is refused until an end.
RARE = dict.fromkeys(
    (
        *("loading", "readonly", "noscript", "nogroup", "masterdown", "clusterdown", "moved"),
        "noreplicas",
    ),
    pytest.mark.slow,
)
# Nobody uses consumer groups; a server that misses one in a reconcile is none of ours. A script
# that it misses is sent along at once, so nobody loses a job that would be taken over.
NEVER = {("nogroup", "renew"), ("noscript", "takeover")}
WORKERS_CALLS = (*("pull", "begin", "takeover", "append", "renew", "end", "complete_many", "tick"),)
LEASE = {"lease_ttl_s": 2, "renew_interval_s": 0.2}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Run one server: the errors are ours, whatever its kind."""
    running = start_private()
    yield running
    running.close()


@pytest.fixture
async def wire(redis_url: str) -> AsyncIterator[WireProxy]:
    """Give an address of the server that can be made to refuse."""
    async with WireProxy(Path(redis_url.removeprefix("unix://"))) as made:
        yield made


@pytest.mark.parametrize("error", [pytest.param(e, marks=RARE.get(e, ())) for e in ERRORS])
async def test_refused_calls_of_a_worker_cost_a_pause(
    client: AsyncClient, scripts: Scripts, wire: WireProxy, pool: str, error: str
) -> None:
    """Each call of a worker is refused once: it reconciles and goes on, and the texts are whole."""
    async with worker(pool, wire.url, null_tokens_per_s=100, **LEASE) as running:
        scripts_refused = [name for name in WORKERS_CALLS if (error, name) not in NEVER]
        traps = [wire.refuse(name, ERRORS[error]) for name in scripts_refused]
        jobs = [await client.submit("x", seed=seed, max_tokens=30) for seed in range(3)]
        stories = [follow(client, job) for job in jobs]
        for seed, story in enumerate(await asyncio.gather(*stories)):
            assert story.text == expected_text(seed, 30)
        async with asyncio.timeout(PATIENCE_S):
            # Answers that a busy worker has whole are one call; later ones need the others.
            while not all(trap.has_closed for trap in traps):
                job = await client.submit("x", seed=9, max_tokens=60)
                assert (await follow(client, job)).text == expected_text(9, 60)
        await until(lambda: running.num_held == 0)

        async def is_tidy() -> bool:
            return await leaked_keys(scripts) == []

        # A completion that was cut in two is finished by the tick, five seconds later.
        await server_says(is_tidy)


@pytest.mark.parametrize(
    "error", ["loading", "readonly", "noscript", "masterdown", "clusterdown", "noreplicas"]
)
async def test_submit_waits_for_a_server_that_will_take_it(
    wire: WireProxy, pool: str, error: str
) -> None:
    """A server that cannot take a job now is asked again; the job is accepted once."""
    async with await AsyncClient.connect(wire.url, pool=pool) as client:
        trap = wire.refuse("submit", ERRORS[error])
        job = await client.submit("hello")
        await trap.closed()
        assert job.created
        assert (await client.scripts.lease.load())["jobs"] == 1
        assert await client.cancel(job)


async def test_submit_to_a_server_without_memory_says_when_to_come_back(
    wire: WireProxy, pool: str
) -> None:
    """OOM is a full queue, with a time to try again."""
    async with await AsyncClient.connect(wire.url, pool=pool) as client:
        wire.refuse("submit", ERRORS["oom"])
        with pytest.raises(QueueFull) as refusal:
            await client.submit("hello")
        assert refusal.value.retry_after_s > 0


async def test_server_without_memory_lets_a_worker_go_on(pool: str) -> None:
    """A worker whose status cannot be stored for seconds pulls, logs and ends what was accepted."""
    server = start_private()
    async with (
        await AsyncClient.connect(server.url, pool=pool) as client,
        worker(pool, server.url, null_tokens_per_s=100, max_num_seqs=1) as running,
    ):
        status = client.scripts.keys.of("status", running.name)

        async def has_status() -> bool:
            return bool(await command(client.scripts, "PTTL", status) > 0)

        # One that was never stored could not be kept.
        await server_says(has_status)
        jobs = [await client.submit("x", seed=seed, max_tokens=120) for seed in range(3)]
        await command(client.scripts, "CONFIG", "SET", "maxmemory", "1mb")
        for seed, job in enumerate(jobs):
            assert (await follow(client, job)).text == expected_text(seed, 120)
        assert running._parts is not None
        assert running._parts.member.session.num_losses == 0
        assert await has_status()
    await asyncio.to_thread(server.close)


async def test_deadline_that_the_measured_rate_cannot_meet_is_refused(
    redis_url: str, pool: str
) -> None:
    """A client that asks for it is told at submit, with the estimate; others find out later."""
    careful = ClientSettings(refuse_late=True)
    async with (
        worker(pool, redis_url, null_tokens_per_s=60, max_num_seqs=1),
        await AsyncClient.connect(redis_url, pool=pool) as client,
        await AsyncClient.connect(redis_url, pool=pool, settings=careful) as careful_client,
    ):
        # The last ones are never reached: some backlog is left whenever the rate is known.
        sizes = [40] * 6 + [4000] * 6
        jobs = [await client.submit("x", max_tokens=size) for size in sizes]
        async with asyncio.timeout(PATIENCE_S):
            # The rate is known once half a second of backlog was seen.
            for first in jobs:
                await follow(client, first)
                probe = await client.submit("x", max_tokens=1)
                if probe.eta_s is not None:
                    break
        with pytest.raises(DeadlineUnmeetable) as refusal:
            await careful_client.submit("x", max_tokens=4, deadline_s=1)
        assert refusal.value.eta_s > refusal.value.deadline_s == 1
        hopeful = await client.submit("x", max_tokens=4, deadline_s=1)
        with pytest.raises(JobExpired):
            await client.result(hopeful, timeout_s=PATIENCE_S)
        for job in (*jobs, probe):
            await client.cancel(job)
