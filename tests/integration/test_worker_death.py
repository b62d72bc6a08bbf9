"""Workers that die, hang, are stopped or interrupted: readers see a pause, not a gap."""

from __future__ import annotations

import asyncio
import os
import signal
from math import log2
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.forkserver import forked_null_worker
from workers.null_workers import (
    Story,
    command,
    expected_text,
    follow,
    leaked_keys,
    until,
    worker,
)

from tokenbus.producer.client.pool_status import read_status
from tokenbus.producer.client.worker_status import WorkerPhase
from tokenbus.producer.commands.watching.status import run_status
from tokenbus.producer.contract.messages.wire_delta import joined
from tokenbus.producer.scripts.lease import LeaseScripts
from tokenbus.producer.scripts.replies import Orphan
from tokenbus.worker.engine import supervisor as engine_supervisor
from tokenbus.worker.errors import DeathCause

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.scripts import Scripts
    from tokenbus.worker.engine.current_engine import Outage
    from tokenbus.worker.supervisor import Worker

LEASE: dict[str, Any] = {"lease_ttl_s": 1, "renew_interval_s": 0.3}
NUM_JOBS = 6
NUM_TOKENS = 60
# A worker or an engine that is lost midway: answers take ten seconds, and the next one is fast.
SLOW: dict[str, Any] = {"null_tokens_per_s": 6}
NUM_SEEN = 3
TOOL = {"type": "function", "function": {"name": "now", "parameters": {}}}


async def _submit(
    client: AsyncClient, num_tokens: int = NUM_TOKENS, num_with_tools: int = 0
) -> list[str]:
    """Submit jobs; the answers of the first few are messages."""
    job_ids = []
    for seed in range(NUM_JOBS):
        words = "x" * (10 + seed)
        asked: dict[str, Any] = {"prompt": words}
        if seed < num_with_tools:
            asked = {"messages": [{"role": "user", "content": words}], "tools": [TOOL]}
        job = await client.submit(**asked, seed=seed, max_tokens=num_tokens)
        job_ids.append(job.job_id)
    return job_ids


class Readers:
    """A reader per job, and the moment when every one of them has seen enough tokens."""

    def __init__(self, client: AsyncClient, job_ids: list[str], num_seen: int) -> None:
        self.job_ids = job_ids
        self._midway = {job_id: asyncio.Event() for job_id in job_ids}
        self._num_seen = num_seen
        self._tasks = [
            asyncio.create_task(follow(client, job_id, self._look)) for job_id in job_ids
        ]

    def _look(self, story: Story) -> None:
        if story.last >= self._num_seen:
            self._midway[story.job_id].set()

    async def midway(self) -> None:
        """Wait until every reader is in the middle of its job."""
        async with asyncio.timeout(PATIENCE_S):
            for event in self._midway.values():
                await event.wait()

    async def check(self, num_tokens: int = NUM_TOKENS) -> list[Story]:
        """Wait for all ends; the texts are those of unbroken runs."""
        stories = await asyncio.gather(*self._tasks)
        for seed, story in enumerate(stories):
            assert story.reason == "length"
            assert story.text == expected_text(seed, num_tokens)
        return list(stories)


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)]
)
async def test_second_worker_goes_on_where_the_first_was_lost(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str, number: signal.Signals
) -> None:
    """After SIGKILL, or a pause longer than the lease, another worker ends every text unbroken.

    The paused one wakes up to a log that is not its own any more and drops everything. What is
    told of messages goes on as their texts do.
    """
    async with forked_null_worker(pool, redis_url, **SLOW, **LEASE) as first:
        readers = Readers(client, await _submit(client, num_with_tools=2), NUM_SEEN)
        await readers.midway()
        first.send(number)
        async with worker(pool, redis_url, **LEASE) as second:
            stories = await readers.check()
            assert all(len(story.epochs) == 2 for story in stories)
            assert second.metrics.jobs_resumed == NUM_JOBS
            for story in stories:
                result = await client.result(story.job_id)
                assert joined(story.deltas[0]).content == result.message.content
                assert result.message.content.split() == story.text.split()
            if number is signal.SIGSTOP:
                first.send(signal.SIGCONT)
                name = await _other_worker(scripts, second.name)
                held = scripts.keys.of("held", name)
                alive = scripts.keys.of("alive", name)
                async with asyncio.timeout(PATIENCE_S):
                    while not await command(scripts, "EXISTS", alive) or await command(
                        scripts, "HLEN", held
                    ):
                        pass
                late = await client.submit("hello", seed=77, max_tokens=30)
                assert (await follow(client, late)).text == expected_text(77, 30)
            await until(lambda: second.num_held == 0)


async def test_choices_and_stop_strings_continue_in_the_next_worker(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """Of a job with two choices one meets a stop string behind the cut: both texts are unbroken."""
    texts = [expected_text(5, NUM_TOKENS, choice) for choice in range(2)]
    stop = texts[0][150:160]
    assert stop not in texts[1]
    async with forked_null_worker(pool, redis_url, **SLOW, **LEASE) as first:
        job = await client.submit("hello", seed=5, n=2, max_tokens=NUM_TOKENS, stop=[stop])
        midway = asyncio.Event()

        def look(story: Story) -> None:
            if story.last >= 2 * NUM_SEEN:
                midway.set()

        reader = asyncio.create_task(follow(client, job, look))
        async with asyncio.timeout(PATIENCE_S):
            await midway.wait()
        first.send(signal.SIGKILL)
        async with worker(pool, redis_url, **LEASE):
            story = await reader
    assert story.texts == {0: texts[0][: texts[0].index(stop)], 1: texts[1]}
    assert story.finish is not None
    assert story.finish.choices == ("stop", "length")
    assert story.epochs == {1, 3}


async def _other_worker(scripts: Scripts, name: str) -> str:
    members = await command(scripts, "SMEMBERS", scripts.keys.of("workers"))
    [other] = {member.decode() for member in members} - {name}
    return str(other)


async def test_drain_hands_back_what_does_not_end_in_time(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """SIGTERM ends the worker with status 0 after its deadline, its jobs go on elsewhere.

    A drain is no crash: no attempt is counted.
    """
    async with forked_null_worker(pool, redis_url, **SLOW, drain_deadline_s=0.3) as first:
        readers = Readers(client, await _submit(client), NUM_SEEN)
        await readers.midway()
        first.send(signal.SIGTERM)
        assert await first.wait() == 0
        assert await scripts.lease.scan() == []
        async with worker(pool, redis_url) as second:
            await readers.check()
            assert second.metrics.jobs_resumed == NUM_JOBS
            await until(lambda: second.num_held == 0)
    for job_id in readers.job_ids:
        record = await scripts.queue.record(job_id)
        assert record is not None
        assert record.attempts == 0
    assert await leaked_keys(scripts) == []


async def test_drain_lets_jobs_end_that_do_so_in_time(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A worker that is asked to stop finishes what runs, and pulls nothing more."""
    async with forked_null_worker(
        pool, redis_url, null_tokens_per_s=60, drain_deadline_s=30
    ) as first:
        readers = Readers(client, await _submit(client), 10)
        await readers.midway()
        first.send(signal.SIGTERM)
        stories = await readers.check()
        assert all(story.epochs == {1} for story in stories)
        assert await first.wait() == 0


async def test_second_interrupt_does_not_wait_for_the_deadline(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """Ctrl-C twice ends the worker at once; what it held is finished by another, unbroken."""
    given: dict[str, Any] = {"drain_deadline_s": 3600, "renew_interval_s": 0.3}
    async with forked_null_worker(pool, redis_url, **SLOW, **given) as first:
        readers = Readers(client, await _submit(client), NUM_SEEN)
        await readers.midway()
        first.send(signal.SIGINT)
        # Two signals at once may arrive as one.
        async with asyncio.timeout(PATIENCE_S):
            while await _phases(client) != {WorkerPhase.DRAINING}:  # noqa: ASYNC110 -- no event
                await asyncio.sleep(0.05)
        first.send(signal.SIGINT)
        assert await first.wait() == 0
        async with worker(pool, redis_url):
            stories = await readers.check()
        assert all(len(story.epochs) == 2 for story in stories)


async def _phases(client: AsyncClient) -> set[WorkerPhase]:
    return {each.phase for each in (await client.status()).details}


def _hasten_next_engine(running: Worker) -> None:
    """Let the engine that takes the place of this one go as fast as it can."""
    fast = running.settings.model_copy(update={"null_tokens_per_s": 0.0})
    running._engine_supervisor._settings = fast


async def test_death_of_the_engine_process_costs_a_pause(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """SIGKILL of the engine alone: its worker gives the jobs back, starts another and goes on."""
    async with worker(pool, redis_url, **SLOW) as running:
        readers = Readers(client, await _submit(client), NUM_SEEN)
        await readers.midway()
        _hasten_next_engine(running)
        assert running.engine_pid is not None
        os.kill(running.engine_pid, signal.SIGKILL)
        stories = await readers.check()
        assert all(len(story.epochs) == 2 for story in stories)
        assert running.metrics.engine_deaths == running.metrics.engine_restarts == 1


async def test_stopped_engine_is_replaced(
    client: AsyncClient, redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that a signal has stopped is killed long before it would count as hung."""
    monkeypatch.setattr(engine_supervisor, "_STOPPED_S", 0.1)
    async with worker(pool, redis_url, **SLOW, engine_stall_s=3600) as running:
        readers = Readers(client, await _submit(client), NUM_SEEN)
        await readers.midway()
        _hasten_next_engine(running)
        assert running.engine_pid is not None
        os.kill(running.engine_pid, signal.SIGSTOP)
        await readers.check()
        assert running.metrics.engine_deaths == 1


async def test_job_that_kills_the_engine_ends_as_poison_alone(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A few engines die of one job; it fails, and all that ran beside it finish unbroken."""
    async with worker(
        pool, redis_url, null_crash_id=7, null_tokens_per_s=200, max_engine_restarts=10
    ) as running:
        good = [await client.submit("hello", seed=s, max_tokens=60) for s in range(8)]
        killer = await client.submit(token_ids=[7], max_tokens=4)
        stories = await asyncio.gather(*(follow(client, job) for job in good))
        assert [s.text for s in stories] == [expected_text(s, 60) for s in range(8)]
        story = await follow(client, killer)
        assert story.finish is not None
        assert story.finish.error is not None
        assert story.finish.error.code == "poison"
        assert running.metrics.engine_deaths <= 2 * log2(9) + 4
        assert running.metrics.engine_ends[DeathCause.SIGNAL] == running.metrics.engine_deaths


# One kind of server: what is shown is what a worker makes of its own lease.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_worker_whose_lease_ran_out_reaps_nothing_of_its_own(
    client: AsyncClient, redis_url: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that had no processor for so long, and scans before it renews, is no dead worker."""
    scan, found = LeaseScripts.scan_workers, list[Orphan]()

    async def scan_late(lease: LeaseScripts) -> tuple[list[Orphan], list[str]]:
        alive = client.scripts.keys.of("alive", running.name)
        await command(client.scripts, "DEL", alive)
        orphans, struck = await scan(lease)
        found.extend(orphans)
        return orphans, struck

    async with worker(pool, redis_url, null_tokens_per_s=20, **LEASE) as running:
        job = await client.submit("hello", seed=1, max_tokens=4000)
        reading = asyncio.create_task(follow(client, job))
        monkeypatch.setattr(LeaseScripts, "scan_workers", scan_late)
        await until(lambda: {orphan.worker for orphan in found} == {running.name})
        # Whoever had reaped it has done so by the next scan.
        num_found = len(found)
        await until(lambda: len(found) > num_found)
        await client.cancel(job)
        assert (await reading).epochs == {1}
        assert running.metrics.jobs_reaped == 0


async def _outages(client: AsyncClient) -> Mapping[str, str]:
    return (await read_status(client.scripts.redis, client.scripts.keys)).outages


# One kind of server: what is shown is what the worker makes of its engine.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_worker_outlives_engines_that_do_not_start(
    client: AsyncClient, redis_url: str, pool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It gives back what it holds, says why it is not ready, tries again, and goes on.

    An engine that has no time to start stands for any that does not.
    """
    # It tells of itself often, and counts as alive where it does not for a while.
    told = {"lease_ttl_s": 60, "renew_interval_s": 0.3}
    async with worker(pool, redis_url, null_tokens_per_s=60, **told) as running:
        readers = Readers(client, await _submit(client), 10)
        await readers.midway()
        supervisor = running._engine_supervisor
        hasty = running.settings.model_copy(update={"engine_start_timeout_s": 0.001})
        supervisor._settings = hasty
        assert running.engine_pid is not None
        os.kill(running.engine_pid, signal.SIGKILL)
        await until(lambda: running.metrics.engine_ends[DeathCause.START] >= 2)
        await until(lambda: running.num_held == 0)
        why = "it was not ready after 0.001 s (start"
        async with asyncio.timeout(PATIENCE_S):
            # What was told before is what the first engine died of.
            while why not in (await _outages(client)).get(running.name, ""):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        # The health check of a worker.
        assert await asyncio.to_thread(run_status, redis_url, pool, here=True) == 1
        assert f"{running.name}: no engine" in capsys.readouterr().out
        supervisor._settings = running.settings
        await readers.check()
        assert not running.has_ended
        assert running.metrics.engine_ends[DeathCause.SIGNAL] == running.metrics.engine_deaths == 1
        async with asyncio.timeout(PATIENCE_S):
            while await _outages(client):  # noqa: ASYNC110 -- no event tells
                await asyncio.sleep(0.05)
        assert await asyncio.to_thread(run_status, redis_url, pool, here=True) == 0


# One kind of server: what is shown is what the worker makes of its engine.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_engines_that_die_of_nothing_come_back_after_growing_pauses(
    redis_url: str, pool: str
) -> None:
    """With no job on board none is to blame: each of a row waits twice as long, none ends it."""
    seen: list[Outage] = []
    async with worker(pool, redis_url, max_engine_restarts=0) as running:
        for number in range(1, 4):
            await until(lambda: running._engine.is_up)
            assert running.engine_pid is not None
            os.kill(running.engine_pid, signal.SIGKILL)
            await until(lambda: running.metrics.engine_deaths == number)  # noqa: B023
            assert running._engine.outage is not None
            seen.append(running._engine.outage)
        await until(lambda: running._engine.is_up)
        assert running._engine.outage is None
    assert [outage.pause_s for outage in seen] == [0.5, 1.0, 2.0]
    assert [outage.num_in_a_row for outage in seen] == [1, 2, 3]
    assert {outage.cause for outage in seen} == {DeathCause.SIGNAL}


@pytest.mark.parametrize(
    "cut",
    ["kill_connections", "forget_scripts", pytest.param("pause_writes", marks=pytest.mark.slow)],
    ids=lambda name: name,
)
async def test_trouble_with_the_server_costs_a_pause(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str, cut: str
) -> None:
    """Connections cut, scripts forgotten, a server that stalls: the texts stay unbroken."""
    acts: dict[str, tuple[str | int, ...]] = {
        "kill_connections": ("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
        "forget_scripts": ("SCRIPT", "FLUSH"),
        "pause_writes": ("CLIENT", "PAUSE", 1500, "WRITE"),
    }
    quick = {"call_timeout_s": 0.5, "null_tokens_per_s": 60}
    async with worker(pool, redis_url, **quick, **LEASE) as running:
        readers = Readers(client, await _submit(client), 10)
        await readers.midway()
        for _ in range(3):
            await command(scripts, *acts[cut])
            # No wait for anything: the next cut is to meet a worker that has not recovered yet.
            await asyncio.sleep(0.2)
        stories = await readers.check()
        assert all(story.epochs == {1} for story in stories)
        await until(lambda: running.num_held == 0)
    assert await leaked_keys(scripts) == []
