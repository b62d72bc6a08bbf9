"""Results of many jobs in one call: each in its place, whoever submitted it and however it ends."""

from __future__ import annotations

import asyncio
import multiprocessing
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.null_workers import until
from workers.stubs import StubWorker, a_job, owned_end, raw, submit, text_of

from tokenbus.producer.client.async_client import AsyncClient, Job
from tokenbus.producer.client.blocking import Client
from tokenbus.producer.client.reading.gathering import Gathering
from tokenbus.producer.contract.result import JobCancelled, JobFailed, JobResult
from tokenbus.producer.errors import (
    ClientClosed,
    JobUnknown,
    RequestInvalid,
    ResultTimeout,
    WrongEventLoop,
)
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.client.reading.gathering import Outcome
    from tokenbus.producer.scripts import Scripts


@pytest.fixture
async def client(redis_url: str, scripts: Scripts) -> AsyncIterator[AsyncClient]:
    """Give a client that looks at silent jobs soon."""
    settings = ClientSettings(silence_s=0.2)
    async with await AsyncClient.connect(redis_url, scripts.keys.pool, settings) as made:
        yield made


async def a_pulled_job(worker: StubWorker) -> str:
    """Pull until a job is there; return its id."""
    while not (jobs := (await worker.pull()).jobs):
        pass
    return jobs[0].job_id


async def a_worker(scripts: Scripts) -> StubWorker:
    """Give a worker that has pulled what waits."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    await worker.pull()
    return worker


def told(outcomes: list[Outcome]) -> list[str]:
    """Name what became of each job, with its text where it has one."""
    return [each.text if isinstance(each, JobResult) else type(each).__name__ for each in outcomes]


async def complete(scripts: Scripts, job_id: str, last: int, reason: str = "stop") -> None:
    """Complete a job that has ended."""
    await JobCompletion(scripts).complete(job_id, owned_end(job_id, 1, last, reason).finish)


@pytest.mark.each_value
@pytest.mark.parametrize("is_own", [True, False])
async def test_what_became_of_each_job_stands_in_its_place(
    client: AsyncClient, redis_url: str, monkeypatch: pytest.MonkeyPatch, *, is_own: bool
) -> None:
    """A result, or the error that `result` would raise; jobs of others are told like one's own."""
    scripts, told_of, over_s = client.scripts, set[str](), 0.0
    finish = Gathering._finish

    def noting(gathering: Gathering, text: str, outcome: Outcome) -> None:
        told_of.add(text)
        finish(gathering, text, outcome)

    monkeypatch.setattr(Gathering, "_finish", noting)
    monkeypatch.setattr(f"{Gathering.__module__}.monotonic", lambda: monotonic() + over_s)
    async with await AsyncClient.connect(redis_url, scripts.keys.pool) as other:
        submitter = client if is_own else other
        wishes = [{"prompt": "x", "max_tokens": 16, "id": f"j{i}"} for i in range(4)]
        await submitter.submit_many(wishes)
        worker = await a_worker(scripts)
        waiting = await submitter.submit("x")
        refusal = RequestInvalid("prompt", "no")
        given: list[Any] = ["j2", refusal, "j0", "none", "j3", "j1", waiting, "j2"]
        gathered = asyncio.ensure_future(client.results(given, timeout_s=PATIENCE_S))
        await worker.run("j1", 1, 2)
        await complete(scripts, "j1", 2)
        await worker.start("j2", 1)
        await worker.end("j2", 1, 0, reason="failed")
        await complete(scripts, "j2", 0, "failed")
        await worker.run("j0", 1, 1)
        await complete(scripts, "j0", 1)
        # The time is over once all that has ended was heard of.
        await until(lambda: len(told_of) == 4)
        over_s = PATIENCE_S
        found = await gathered
        assert await submitter.cancel(waiting)
        [late] = await client.results([waiting])
    # What is held and never ends, and what still waited, have not ended in time.
    assert told(found) == [
        *("JobFailed", "RequestInvalid", text_of(1, 1), "JobUnknown", "ResultTimeout"),
        *(text_of(1, 2), "ResultTimeout", "JobFailed"),
    ]
    assert isinstance(found[0], JobFailed)
    assert found[0] is found[7]
    assert isinstance(late, JobCancelled)


async def test_results_come_as_jobs_end(client: AsyncClient) -> None:
    """The index says which job it is; a call that is left lets go of the others."""
    jobs = await client.submit_many([{"prompt": "x", "max_tokens": 16}] * 3)
    ids = [job.job_id for job in jobs if isinstance(job, Job)]
    worker = await a_worker(client.scripts)
    gathered = client.results(jobs, as_completed=True)
    async with asyncio.timeout(PATIENCE_S):
        for number in (2, 0):
            await worker.run(ids[number], 1, number)
            index, outcome = await anext(gathered)
            assert (index, told([outcome])) == (number, [text_of(1, number)])
        await gathered.aclose()
        await worker.run(ids[1], 1, 1)
        assert told(await client.results([ids[1]])) == [text_of(1, 1)]
    assert await client.results([]) == []


async def test_submit_may_wait_for_the_result(client: AsyncClient) -> None:
    """One call brings the result; a job that has not ended in time goes on."""
    waiting = asyncio.ensure_future(client.submit("x", wait=True, max_tokens=16))
    async with asyncio.timeout(PATIENCE_S):
        worker = StubWorker(client.scripts)
        await worker.reconcile()
        await worker.run(await a_pulled_job(worker), 1, 2)
        assert (await waiting).text == text_of(1, 2)
    with pytest.raises(ResultTimeout):
        await client.submit("x", wait=True, timeout_s=0.01, max_tokens=16)
    with pytest.raises(RequestInvalid, match="wait"):
        await client.submit("x", timeout_s=1)


async def test_result_that_events_do_not_tell_is_read(client: AsyncClient) -> None:
    """Logprobs of a prompt are in the stored result alone."""
    [job] = await client.submit_many([{"prompt": "x", "max_tokens": 16, "prompt_logprobs": 1}])
    assert isinstance(job, Job)
    worker = await a_worker(client.scripts)
    await worker.run(job.job_id, 1, 1)
    key = client.scripts.keys.result(job.job_id)
    stored = await client.scripts.log.result(job.job_id)
    assert stored is not None
    told_whole = stored.replace(b'"finish"', b'"prompt_logprobs":[null,[-0.5,1,[]]],"finish"', 1)
    await raw(client.scripts).set(key, told_whole)
    [result] = await client.results([job])
    assert isinstance(result, JobResult)
    assert len(result.prompt_logprobs) == 2


async def test_result_of_version_1_is_its_tenants(client: AsyncClient) -> None:
    """What an earlier release left at a bare id is found by its own tenant alone."""
    await submit(client.scripts, a_job("old", version=1))
    worker = await a_worker(client.scripts)
    await worker.run("old", 1, 1)
    await raw(client.scripts).hdel(client.scripts.keys.of("job", "old"), "v")
    assert told(await client.results(["old"], tenant="acme")) == [text_of(1, 1)]
    [others] = await client.results(["old"], tenant="firm")
    assert isinstance(others, JobUnknown)


async def test_results_belong_to_a_loop_and_end_with_the_client(
    redis_url: str, scripts: Scripts
) -> None:
    """Another loop is told so at the call, and who waits is told when the client closes."""
    client = await AsyncClient.connect(redis_url, scripts.keys.pool)
    jobs = await client.submit_many([{"prompt": "x"}])

    def elsewhere() -> str:
        async def call() -> None:
            await client.results(jobs)

        try:
            asyncio.run(call())
        except WrongEventLoop as error:
            return type(error).__name__
        return ""

    assert await asyncio.to_thread(elsewhere) == "WrongEventLoop"
    waiting = asyncio.ensure_future(client.results(jobs))
    await asyncio.sleep(0)
    await client.close()
    with pytest.raises(ClientClosed):
        await waiting


def _forked(client: Client, pipe: multiprocessing.connection.Connection) -> None:
    answers = client.submit_many([{"prompt": "x", "max_tokens": 16}])
    pipe.send("submitted")
    pipe.send(told(client.results(answers)))


async def test_blocking_client_gathers_in_a_fork_too(
    redis_url: str, scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parent and child hear their own jobs, in order or as they end."""
    monkeypatch.setattr("tokenbus.producer.client.async_client._LISTEN_WAIT_S", PATIENCE_S)
    client = await asyncio.to_thread(Client, redis_url, scripts.keys.pool)
    jobs = await asyncio.to_thread(client.submit_many, [{"prompt": "x", "max_tokens": 16}] * 2)
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_forked, args=(client, theirs))
    child.start()
    assert await asyncio.to_thread(ours.recv) == "submitted"
    worker = await a_worker(scripts)
    assert len(set(worker.listens.values())) == 2
    as_completed = client.results(jobs, as_completed=True)
    for job_id in worker.listens:
        await worker.run(job_id, 1, 1)
    assert await asyncio.to_thread(ours.recv) == [text_of(1, 1)]
    found = await asyncio.to_thread(lambda: dict(as_completed))
    assert told([found[0], found[1]]) == [text_of(1, 1)] * 2
    again = await asyncio.to_thread(client.results, jobs)
    assert told(again) == [text_of(1, 1)] * 2
    waited = asyncio.ensure_future(
        asyncio.to_thread(lambda: client.submit("x", wait=True, max_tokens=16))
    )
    async with asyncio.timeout(PATIENCE_S):
        await worker.run(await a_pulled_job(worker), 1, 1)
        assert (await waited).text == text_of(1, 1)
    await asyncio.to_thread(child.join)
    await asyncio.to_thread(client.close)
