"""The client's calls as a web backend makes them, asynchronous and blocking."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from workers.stubs import StubWorker, raw

from tokenbus.producer.client.async_client import AsyncClient, Job
from tokenbus.producer.client.blocking import Client
from tokenbus.producer.contract.result import JobCancelled, JobFailed
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import (
    ClientClosed,
    IdempotencyConflict,
    JobUnknown,
    QueueFull,
    RequestInvalid,
    ResultTimeout,
    ServerUnreachable,
)
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.scripts import Scripts


@pytest.fixture
async def client(redis_url: str, scripts: Scripts) -> AsyncIterator[AsyncClient]:
    """Give a client of the pool."""
    async with await AsyncClient.connect(redis_url, scripts.keys.pool) as made:
        yield made


async def serve(scripts: Scripts, reason: str = "stop") -> None:
    """Run every waiting job for three tokens."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    for job in (await worker.pull()).jobs:
        await worker.start(job.job_id, job.epoch)
        await worker.append(job.job_id, job.epoch, 1, 3)
        finish = (await worker.end(job.job_id, job.epoch, 3, reason)).finish
        await JobCompletion(scripts).complete(job.job_id, finish)


async def test_submit_and_result(client: AsyncClient) -> None:
    """A submitted job comes back whole, with its place when it was accepted."""
    job = await client.submit("How long is delivery?", max_tokens=8, tenant="shop")
    assert (job.created, job.jobs_ahead, job.eta_s) == (True, 0, 0.0)
    waiting = asyncio.create_task(client.result(job, timeout_s=PATIENCE_S))
    await serve(client.scripts)
    result = await waiting
    assert (result.text, result.last, result.finish.reason) == ("001 002 003 ", 3, "stop")
    assert (await client.result(job.job_id, tenant="shop")).choices[0].ids == (1, 2, 3)


async def test_stored_request_is_the_submitted_one(client: AsyncClient) -> None:
    """What a worker pulls validates as what was sent, with id and seed filled in."""
    job = await client.submit(messages=[{"role": "user", "content": "héllo"}], temperature=0.5)
    worker = StubWorker(client.scripts)
    await worker.reconcile()
    [pulled] = (await worker.pull()).jobs
    request = JobRequest.parse(pulled.request)
    assert request.messages is not None
    assert request.messages[0].content == "héllo"
    assert (request.id, request.seed is None) == (job.job_id, False)


async def test_wrong_requests_never_reach_the_server(client: AsyncClient) -> None:
    """A request that breaks the schema is refused by field before anything is sent."""
    with pytest.raises(RequestInvalid, match="max_tokens"):
        await client.submit("x", max_tokens=-1)
    assert await client.scripts.lease.load() == {}


async def test_ends_that_are_not_finished_raise(client: AsyncClient) -> None:
    """Cancelled and failed jobs raise what happened, and hold what was generated."""
    cancelled = await client.submit("x")
    assert await client.cancel(cancelled.job_id) is True
    assert await client.cancel(cancelled.job_id) is False
    with pytest.raises(JobCancelled):
        await client.result(cancelled.job_id)
    failed = await client.submit("x")
    await serve(client.scripts, "failed")
    with pytest.raises(JobFailed) as caught:
        await client.result(failed.job_id)
    assert caught.value.result.text == "001 002 003 "


async def test_unknown_job_cannot_be_cancelled(client: AsyncClient) -> None:
    """Cancel of a job that nobody knows raises JobUnknown."""
    with pytest.raises(JobUnknown):
        await client.cancel("nobody")


async def test_result_may_be_awaited_for_a_time(client: AsyncClient) -> None:
    """A result that does not come in time raises; the job is still there."""
    job = await client.submit("x")
    with pytest.raises(ResultTimeout):
        await client.result(job.job_id, timeout_s=0.05)
    assert await client.cancel(job.job_id) is True


async def test_idempotency_key_gives_the_same_job(client: AsyncClient) -> None:
    """The same key and request give one job, also after its end; another request conflicts."""
    first = await client.submit("x", idempotency_key="order-7")
    second = await client.submit("x", idempotency_key="order-7")
    assert (second.job_id, second.created) == (first.job_id, False)
    with pytest.raises(IdempotencyConflict):
        await client.submit("y", idempotency_key="order-7")
    other = await client.submit("y", idempotency_key="order-7", tenant="other")
    assert other.created


async def test_full_queue_says_when_to_come_back(redis_url: str, scripts: Scripts) -> None:
    """Over its bound a tenant gets QueueFull with a time and a ticket."""
    settings = ClientSettings(max_tenant_tokens=200)
    async with await AsyncClient.connect(redis_url, scripts.keys.pool, settings) as client:
        await client.submit("x", max_tokens=150)
        with pytest.raises(QueueFull) as caught:
            await client.submit("x", max_tokens=150)
        assert caught.value.retry_after_s > 0
        assert caught.value.ticket > 0
        await client.submit("x", max_tokens=150, tenant="other")


async def test_full_memory_is_a_full_queue(client: AsyncClient) -> None:
    """A server out of memory refuses submits as a full queue, and still lets jobs end."""
    job = await client.submit("x")
    redis = raw(client.scripts)
    await redis.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueFull, match="memory"):
            await client.submit("y")
        [refused] = await client.submit_many([{"prompt": "y"}])
        assert isinstance(refused, QueueFull)
        assert await client.cancel(job.job_id) is True
    finally:
        await redis.config_set("maxmemory", 0)


async def test_server_that_forgot_the_scripts_gets_them_again(client: AsyncClient) -> None:
    """Flushed scripts are no error to anybody."""
    await client.submit("x")
    await raw(client.scripts).script_flush()
    job = await client.submit("x")
    await raw(client.scripts).script_flush()
    assert await client.cancel(job.job_id) is True


async def test_lost_connections_are_tried_again(client: AsyncClient) -> None:
    """A submit over cut connections is repeated; the job exists once."""
    await client.submit("x")
    other = raw(client.scripts)
    for _ in range(3):
        await other.client_kill_filter(_type="normal", skipme=True)
        await other.connection_pool.disconnect()
        assert (await client.submit("x")).created
    assert (await client.scripts.lease.load())["jobs"] == 4


async def test_unreachable_server_is_one_clear_error() -> None:
    """After the time given for retries the error names the server, not its password."""
    settings = ClientSettings(retry_for_s=0.3)
    with pytest.raises(ServerUnreachable) as caught:
        await AsyncClient.connect("redis://me:hush@127.0.0.1:1/0", settings=settings)
    assert "redis://***@127.0.0.1:1/0" in str(caught.value)
    assert "hush" not in str(caught.value)


async def test_blocking_client_has_the_same_calls(
    redis_url: str, pool: str, scripts: Scripts
) -> None:
    """Submit, stream, result and cancel work without an event loop."""

    def use() -> list[str]:
        with Client.connect(redis_url, pool) as client:
            job = client.submit("x", max_tokens=5)
            assert [isinstance(a, Job) for a in client.submit_many([{"prompt": "y"}])] == [True]
            served.set()
            texts = [event.text for event in client.stream(job.job_id)]
            assert client.result(job.job_id, timeout_s=PATIENCE_S).text == "".join(texts)
            assert client.cancel(job.job_id) is False
        with pytest.raises(ClientClosed):
            client.submit("x")
        return texts

    served = threading.Event()
    using = asyncio.create_task(asyncio.to_thread(use))
    assert await asyncio.to_thread(served.wait, PATIENCE_S)
    await serve(scripts)
    assert "".join(await using) == "001 002 003 "


async def test_blocking_client_is_safe_in_threads(
    redis_url: str, pool: str, scripts: Scripts
) -> None:
    """Threads may share one client."""
    client = await asyncio.to_thread(Client.connect, redis_url, pool)
    jobs = await asyncio.gather(*(asyncio.to_thread(client.submit, "x") for _ in range(40)))
    assert len({job.job_id for job in jobs}) == 40
    assert (await scripts.lease.load())["jobs"] == 40
    await asyncio.to_thread(client.close)


FORKED = """
import os, sys
from tokenbus.producer.client.blocking import Client
client = Client.connect(sys.argv[1], sys.argv[2])
parent = client.submit("parent").job_id
pid = os.fork()
if pid == 0:
    child = client.submit("child").job_id
    ended = client.cancel(child) and list(client.stream(child))[-1].finish.reason == "cancelled"
    client.close()
    sys.exit(0 if ended else 1)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert client.cancel(parent)
client.close()
sys.exit(code)
"""


def test_blocking_client_works_after_a_fork(redis_url: str, pool: str) -> None:
    """A forked process, as under a preloading web server, uses the client it inherited."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", FORKED, redis_url, pool],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=os.environ,
    )
    assert run.returncode == 0, run.stderr


FORKED_LOOP = """
import asyncio, gc, os, sys
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ClientClosed

async def main():
    client = await AsyncClient.connect(sys.argv[1], sys.argv[2])
    job = await client.submit("parent")
    stream = client.stream(job.job_id)
    reading = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    pid = os.fork()
    if pid == 0:
        refused = 0
        for call in (lambda: client.submit("child"), lambda: client.cancel(job.job_id)):
            try:
                await call()
            except ClientClosed as error:
                refused += str(os.getppid()) in str(error)
        await client.close()
        del client, stream, reading
        gc.collect()
        os._exit(0 if refused == 2 else 1)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    await client.cancel(job.job_id)
    ended = (await asyncio.wait_for(reading, 300)).finish.reason == "cancelled"
    await client.close()
    return code or not ended

sys.exit(asyncio.run(main()))
"""


def test_client_of_a_loop_is_refused_in_a_fork_and_lives_on_in_the_parent(
    redis_url: str, pool: str
) -> None:
    """A fork gets a clear error from its parent's client, and takes nothing from the parent."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", FORKED_LOOP, redis_url, pool], timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0


@pytest.mark.processes
def test_importing_the_producer_pulls_in_no_torch() -> None:
    """A web backend that imports the clients loads neither torch nor transformers."""
    code = (
        "import sys, tokenbus.producer.client.async_client, tokenbus.producer.client.blocking;"
        "sys.exit(any(n in sys.modules for n in ('torch', 'transformers', 'triton')))"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], timeout=PATIENCE_S).returncode == 0
