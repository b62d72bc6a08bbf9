"""Redis Cluster: the same scripts, one slot per pool and one per shard of logs."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from rides.ride import NullCargo, Ride
from rides.scale import PATIENT
from servers.fixtures import pool, server_binary
from servers.server_groups import ServerGroup, start_cluster
from workers.forkserver import forked_worker

from tokenbus.producer.client.async_client import AsyncClient, Job
from tokenbus.producer.client.living_pools import living_pools
from tokenbus.producer.contract.keys import shard_of
from tokenbus.producer.contract.result import JobCancelled
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import JobUnknown, ServerUnsuitable
from tokenbus.producer.scripts.replies import JobState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["pool"]


@pytest.fixture(scope="module", params=["valkey", pytest.param("redis", marks=pytest.mark.slow)])
def binary(request: pytest.FixtureRequest) -> str:
    """Return a server that can be part of a cluster."""
    return server_binary(request.param)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster_url(binary: str) -> AsyncIterator[str]:
    """Give the URL of three masters."""
    async with ServerGroup(binary) as group:
        yield await start_cluster(group)


@pytest.mark.parametrize(
    "publishers",
    [
        pytest.param(0, id="in-worker"),
        pytest.param(1, id="own-process", marks=pytest.mark.slow),
    ],
)
async def test_jobs_survive_a_worker_on_three_masters(
    cluster_url: str, pool: str, publishers: int
) -> None:
    """Submit, stream, the death of a worker and a cancel on a cluster: all ends as on one server.

    The logs lie on several shards, so that more than one master carries the tokens, whichever
    process writes them.
    """
    async with await AsyncClient.connect(cluster_url, pool=pool, settings=PATIENT) as client:
        # Long answers at the first worker, which the second ends fast.
        ride = Ride(client, NullCargo(tokens_per_s=12), random.Random(6), cluster_url)
        async with AsyncExitStack() as stack:
            settings = ride.settings() | {"publishers": publishers}
            first = await stack.enter_async_context(forked_worker(**settings))
            await ride.board(12, 60)
            assert len({shard_of(job_id) for job_id in ride.wanted}) > 1
            unwanted = await client.submit("never mind", max_tokens=4000)
            await ride.until_seen(5, 12)
            first.kill()
            fast = settings | {"null_tokens_per_s": 200}
            await stack.enter_async_context(forked_worker(**fast))
            assert await client.cancel(unwanted)
            stories = await ride.arrive()
            assert any(len(story.epochs) > 1 for story in stories.values())
            with pytest.raises(JobCancelled):
                await client.result(unwanted)
            await ride.check_nothing_left()


async def test_many_submits_at_once_on_a_cluster(cluster_url: str, pool: str) -> None:
    """A batch of submits goes to the pool's node, also when that node lacks the script."""
    async with await AsyncClient.connect(cluster_url, pool=pool) as client:
        for start in (0, 3):
            requests = [JobRequest.build(prompt=f"job {start + n}") for n in range(3)]
            jobs = await client.submit_many(requests)
            assert [isinstance(job, Job) for job in jobs] == [True] * 3
        assert (await client.scripts.lease.load())["jobs"] == 6


async def test_operator_sees_and_pauses_a_pool_on_a_cluster(cluster_url: str, pool: str) -> None:
    """Status, list and pause ask the pool's node; other pools' workers are not known there."""
    async with await AsyncClient.connect(cluster_url, pool=pool) as client:
        job = await client.submit("x", tenant="shop")
        await client.pause()
        [listed] = (await client.list_jobs(tenant="shop")).jobs
        assert listed.job_id == job.job_id
        status = await client.status()
        assert status.paused_for_s is not None
        assert [each.job_id for each in status.oldest] == [job.job_id]
        assert await living_pools(client.scripts) is None
        await client.resume()
        assert (await client.status()).paused_for_s is None


async def test_tenants_have_names_of_their_own_on_a_cluster(cluster_url: str, pool: str) -> None:
    """One id of two tenants is two jobs of one shard, and a channel can be told of a refusal."""
    async with await AsyncClient.connect(cluster_url, pool=pool) as client:
        jobs = [
            await client.submit("x", id="s5-one", tenant=tenant, max_tokens=4)
            for tenant in ("shop", "firm")
        ]
        assert all(job.created for job in jobs)
        for tenant in ("default", "other"):
            with pytest.raises(JobUnknown):
                await client.cancel("s5-one", tenant)
        assert await client.cancel("s5-one", "shop")
        [event] = [event async for event in client.stream("s5-one", tenant="shop")]
        assert event.finish is not None
        assert (event.tenant, event.finish.reason) == ("shop", "cancelled")
        record = await client.scripts.queue.record("s5-one@firm")
        assert record is not None
        assert record.state is JobState.WAITING
        await client.scripts.log.announce("s5-one@other", "{}")
        await client.scripts.queue.reply("r" * 16, "{}")


async def test_node_of_a_cluster_is_no_server_of_its_own(cluster_url: str) -> None:
    """Whoever names one node as if it were all is told how to name the cluster."""
    with pytest.raises(ServerUnsuitable, match=r"redis\+cluster://"):
        await AsyncClient.connect(cluster_url.replace("+cluster", ""))
