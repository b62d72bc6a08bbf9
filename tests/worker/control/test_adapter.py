"""arq's `enqueue_job("generate", …)` on the pool: one generation per id, come what may."""

from __future__ import annotations

import asyncio
import pickle
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from servers.fixtures import server_binary
from servers.mortal_server import MortalServer
from workers.control_processes import control_process
from workers.null_workers import expected_text, follow
from workers.null_workers import worker as pool_worker
from workers.stubs import raw, until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import JobUnknown
from tokenbus.producer.scripts.replies import JobState
from tokenbus.worker.control.adapter import Adapter
from tokenbus.worker.control.arq_worker import connect_arq
from tokenbus.worker.control.backend import GenerationFailed, RemoteFailure, Results
from tokenbus.worker.control.settings import ControlSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from arq.connections import ArqRedis
    from arq.jobs import Job


@pytest.fixture
def queue(pool: str) -> str:
    """Name an arq queue that no other test uses."""
    return f"arq:{pool}"


@pytest.fixture
async def arq(redis_url: str, queue: str) -> AsyncIterator[ArqRedis]:
    """Give the backend's arq client."""
    redis = connect_arq(redis_url, queue)
    yield redis
    await redis.aclose(close_connection_pool=True)


@asynccontextmanager
async def adapting(client: AsyncClient, queue: str, **values: Any) -> AsyncIterator[Adapter]:
    """Run an adapter beside the test."""
    settings = ControlSettings.load(
        redis_url=client.effective_url, pool=client.scripts.keys.pool, adapter_queue=queue, **values
    )
    adapter = Adapter(client, settings)
    task = asyncio.create_task(adapter.run())
    try:
        yield adapter
    finally:
        task.cancel()
        await asyncio.wait([task])


async def enqueue(arq: ArqRedis, job_id: str, function: str = "generate", **fields: Any) -> Job:
    """Enqueue as a backend does."""
    job = await arq.enqueue_job(function, _job_id=job_id, **fields)
    assert job is not None
    return job


async def result_of(job: Job) -> Any:
    """Wait for arq's result as a backend does."""
    return await job.result(timeout=PATIENCE_S, poll_delay=0.02)


async def generations(client: AsyncClient, job_id: str) -> int:
    """Count the times that the pool started the job, by its epoch."""
    record = await client.scripts.queue.record(job_id)
    return 0 if record is None else record.epoch


def running(client: AsyncClient, job_id: str) -> Any:
    """Return a condition: the pool works at the job."""

    async def is_running() -> bool:
        record = await client.scripts.queue.record(job_id)
        return record is not None and record.state is JobState.HELD

    return is_running


async def test_result_has_text_and_usage_and_tokens_can_be_followed(
    client: AsyncClient, arq: ArqRedis, queue: str, pool: str, redis_url: str
) -> None:
    """`Job.result()` gives the answer, the stream of the same id its tokens."""
    async with pool_worker(pool, redis_url), adapting(client, queue) as adapter:
        job = await enqueue(arq, "order-1", prompt="x", max_tokens=12, seed=5, tenant="shop")
        result = await result_of(job)
        story = await follow(client, "order-1", tenant="shop")
        assert adapter.metrics.adapter_jobs == {"finished": 1}
        assert adapter.metrics.adapter_running == 0
    assert result["text"] == story.text == expected_text(5, 12)
    assert result["reason"] == "length"
    assert result["usage"]["completion_tokens"] == 12
    assert result["job_id"] == "order-1"
    assert await generations(client, "order-1@shop") == 1


async def test_several_choices_come_back(
    client: AsyncClient, arq: ArqRedis, queue: str, pool: str, redis_url: str
) -> None:
    """A request for two choices gets both."""
    async with pool_worker(pool, redis_url), adapting(client, queue), Results(arq, queue) as done:
        job = await enqueue(arq, "two", prompt="x", max_tokens=3, seed=1, n=2)
        result = await done.of(job)
    assert [choice["text"] for choice in result["choices"]] == [
        expected_text(1, 3, 0),
        expected_text(1, 3, 1),
    ]


async def test_abort_cancels_the_generation(
    client: AsyncClient, arq: ArqRedis, queue: str, pool: str, redis_url: str
) -> None:
    """An abort of the arq job ends the pool's job too."""
    async with (
        pool_worker(pool, redis_url, null_tokens_per_s=5),
        adapting(client, queue),
    ):
        job = await enqueue(arq, "long", prompt="x", max_tokens=400)
        await until(running(client, "long"))
        assert await job.abort(timeout=PATIENCE_S, poll_delay=0.02)
        story = await follow(client, "long")
    assert story.reason == "cancelled"


async def test_abort_while_no_adapter_lives_cancels_too(
    client: AsyncClient, arq: ArqRedis, queue: str, pool: str, redis_url: str
) -> None:
    """A job that is aborted between two adapters is cancelled by the next one."""
    async with pool_worker(pool, redis_url, null_tokens_per_s=5):
        async with adapting(client, queue):
            job = await enqueue(arq, "orphaned", prompt="x", max_tokens=400)
            await until(running(client, "orphaned"))
        aborting = asyncio.create_task(job.abort(timeout=PATIENCE_S, poll_delay=0.02))
        async with adapting(client, queue):
            assert await aborting
            story = await follow(client, "orphaned")
    assert story.reason == "cancelled"


async def test_stopped_adapter_leaves_the_generation_running(
    client: AsyncClient, arq: ArqRedis, queue: str, pool: str, redis_url: str
) -> None:
    """A restart of the adapter is no abort: the next one waits for the same generation."""
    async with pool_worker(pool, redis_url, null_tokens_per_s=40):
        async with adapting(client, queue):
            job = await enqueue(arq, "kept", prompt="x", max_tokens=40, seed=3)
            await until(running(client, "kept"))
        async with adapting(client, queue):
            result = await result_of(job)
    assert result["text"] == expected_text(3, 40)
    assert await generations(client, "kept") == 1


async def test_killed_adapter_is_replaced_without_a_second_generation(
    client: AsyncClient, arq: ArqRedis, queue: str, pool: str, redis_url: str
) -> None:
    """SIGKILL in the middle of the wait: the retry finds the same text, generated once."""
    adapter = (pool, redis_url, "adapter", "--queue", queue)
    async with pool_worker(pool, redis_url, null_tokens_per_s=30):
        async with control_process(*adapter, adapter_lock_s=1) as first:
            job = await enqueue(arq, "once", prompt="x", max_tokens=60, seed=9)
            await until(running(client, "once"))
            first.kill()
            await first.process.wait()
        async with control_process(*adapter, adapter_lock_s=1) as second:
            result = await result_of(job)
            info = await job.result_info()
            second.kill()
    assert result["text"] == expected_text(9, 60)
    assert info is not None
    assert info.job_try == 2
    assert await generations(client, "once") == 1


async def test_retry_finds_the_finished_job(
    client: AsyncClient, arq: ArqRedis, queue: str, pool: str, redis_url: str
) -> None:
    """A job that ended while no adapter lived is answered from its result."""
    async with pool_worker(pool, redis_url):
        await client.submit("x", id="done", max_tokens=4, seed=2, deadline_s=3595.0)
        await client.result("done")
        async with adapting(client, queue):
            job = await enqueue(arq, "done", prompt="x", max_tokens=4, seed=2)
            assert (await result_of(job))["text"] == expected_text(2, 4)
    assert await generations(client, "done") == 1


async def test_failures_come_back_by_name(
    client: AsyncClient, arq: ArqRedis, queue: str, pool: str, redis_url: str
) -> None:
    """A wrong request, an expired job and an unknown function each say what is wrong."""
    async with pool_worker(pool, redis_url, null_tokens_per_s=5), adapting(client, queue):
        wrong = await enqueue(arq, "wrong", prompt="x", max_tokens=-1)
        with pytest.raises(RemoteFailure, match="RequestInvalid: max_tokens"):
            await result_of(wrong)
        late = await enqueue(arq, "late", prompt="x", max_tokens=400, deadline_s=0.3)
        with pytest.raises(GenerationFailed) as caught:
            await result_of(late)
        assert caught.value.code == "expired"
        other = await enqueue(arq, "other", "draw", prompt="x")
        with pytest.raises(RemoteFailure, match="not found"):
            await result_of(other)
    with pytest.raises(JobUnknown):
        await client.cancel("wrong")


async def test_pickled_job_is_refused_and_said_so(
    client: AsyncClient, arq: ArqRedis, queue: str, pool: str, redis_url: str, tmp_path: Any
) -> None:
    """A pickle is never loaded: its job fails, the log says how to enqueue, others go on."""
    witness = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return (witness.touch, ())

    arq.job_serializer = pickle.dumps
    await enqueue(arq, "pickled", prompt="x", extra=Bomb())
    arq.job_serializer = None
    async with (
        pool_worker(pool, redis_url),
        control_process(pool, redis_url, "adapter", "--queue", queue) as adapter,
        Results(arq, queue) as done,
    ):
        with pytest.raises(RemoteFailure, match="unable to deserialize job"):
            await done.of("pickled")
        adapter.kill()
        await adapter.process.wait()
    [line] = adapter.logged("arq_job.refused")
    assert "pickled" in line["reason"]
    assert "job_serializer=pack" in line["reason"]
    assert not witness.exists()
    assert await raw(client.scripts).zcard(queue) == 0


@pytest.mark.processes
async def test_server_that_dies_and_comes_back_is_waited_for(queue: str, pool: str) -> None:
    """Arq's worker starts anew with the server, and the jobs go on where they were."""
    server = MortalServer(server_binary("valkey"))
    await server.start()
    try:
        arq = connect_arq(server.url, queue)
        async with (
            await AsyncClient.connect(server.url, pool) as client,
            pool_worker(pool, server.url, null_tokens_per_s=30),
            adapting(client, queue, adapter_lock_s=1),
        ):
            job = await enqueue(arq, "survivor", prompt="x", max_tokens=40, seed=4)
            await until(running(client, "survivor"))
            server.kill()
            await server.start()
            async with Results(arq, queue) as done, asyncio.timeout(PATIENCE_S):
                result = await done.of(job)
            await arq.aclose(close_connection_pool=True)
    finally:
        server.close()
    assert result["text"] == expected_text(4, 40)


async def test_full_queue_is_waited_for(
    client: AsyncClient, arq: ArqRedis, queue: str, pool: str, redis_url: str
) -> None:
    """Jobs over the queue's bound wait in line instead of failing."""
    small = AsyncClient.connect(
        redis_url, pool, client._settings.model_copy(update={"max_pool_tokens": 60})
    )
    async with (
        await small as tight,
        pool_worker(pool, redis_url),
        adapting(tight, queue),
        Results(arq, queue) as done,
        asyncio.timeout(PATIENCE_S),
    ):
        jobs = [await enqueue(arq, f"q{n}", prompt="x", max_tokens=30, seed=n) for n in range(8)]
        results = await asyncio.gather(*(done.of(job) for job in jobs))
    assert [r["text"] for r in results] == [expected_text(n, 30) for n in range(8)]
