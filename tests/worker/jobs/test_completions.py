"""Completions of held jobs: which jobs share a call, and what becomes of those that it fails."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

from patience import PATIENCE_S
from workers.parts import a_member, an_engine

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.scripts.completing import MAX_COMPLETED, Completed
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.errors import SessionLost
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.jobs import completions
from tokenbus.worker.jobs.settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import pytest

    from tokenbus.worker.held.held_job import HeldJob

FINISH = Finish("stop", Usage(3, 0, 2)).dump()


@dataclass
class Pool:
    """A queue that answers completions when the test says so; `calls` are the jobs of each."""

    calls: list[list[str]] = field(default_factory=list)
    answers: asyncio.Queue[dict[str, str] | Exception] = field(default_factory=asyncio.Queue)
    generation: int = 0
    losses: list[str] = field(default_factory=list)

    async def call(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """Make a call in the session."""
        return await act()

    def lose(self, why: str) -> None:
        """Note that the session is lost."""
        self.losses.append(why)

    async def complete_many(self, jobs: Sequence[Completed]) -> list[str]:
        """Note the jobs of a call and wait for its answer: why which of them failed."""
        self.calls.append([job.job_id for job in jobs])
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return [answer.get(job.job_id, "") for job in jobs]


@dataclass
class Bench:
    """A settlement of jobs that run, before a pool that the test plays."""

    pool: Pool
    settlement: Settlement
    held_jobs: Any
    metrics: Any

    def commit(self, *names: str) -> list[HeldJob]:
        """Let jobs be committed, which are taken first where they are not held."""
        jobs = [
            self.held_jobs.get(name)
            or self.held_jobs.take(PulledJob(name, 1, 0, 1, "t", 1, False, 0, None, b""))
            for name in names
        ]
        for job in jobs:
            self.settlement.committed(job, FINISH)
        return jobs

    async def turned(self) -> None:
        """Wait until no call is under way."""
        while any(job.is_leaving for job in self.held_jobs):  # noqa: ASYNC110 -- a turn of the loop, no time
            await asyncio.sleep(0)

    async def called(self, count: int) -> None:
        """Wait until so many calls have been made."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.pool.calls) < count:  # noqa: ASYNC110 -- a turn of the loop, no time
                await asyncio.sleep(0)

    async def emptied(self) -> None:
        """Wait until no job is held."""
        async with asyncio.timeout(PATIENCE_S):
            await self.held_jobs.wait_empty()


def a_bench(tasks: asyncio.TaskGroup) -> Bench:
    """Make a bench whose calls are tasks of the group."""
    pool = Pool()
    member = a_member(session=pool, completion=Mock(complete_many=pool.complete_many))
    settlement = Settlement(member, an_engine()[0])
    settlement.run_in(tasks)
    return Bench(pool, settlement, member.held_jobs, member.metrics)


async def test_lone_job_goes_at_once_and_those_that_end_meanwhile_go_together() -> None:
    """Nobody waits for company; a call takes as many as a script may, and the rest goes next.

    A job is held until its call was answered: its pages are promised to nobody before.
    """
    async with asyncio.TaskGroup() as tasks:
        bench = a_bench(tasks)
        [first] = bench.commit("first")
        await bench.called(1)
        crowd = bench.commit(*(f"j{number}" for number in range(MAX_COMPLETED + 1)))
        assert bench.commit("first", "j0") == [first, crowd[0]]
        assert (len(bench.pool.calls), first.phase) == (1, Phase.COMMITTED)
        bench.pool.answers.put_nowait({})
        await bench.called(2)
        assert (first.phase, len(bench.held_jobs)) == (Phase.GONE, MAX_COMPLETED + 1)
        for _ in range(2):
            bench.pool.answers.put_nowait({})
        await bench.emptied()
    assert [len(call) for call in bench.pool.calls] == [1, MAX_COMPLETED, 1]
    bench.metrics.count()
    assert bench.metrics.jobs_finished == MAX_COMPLETED + 2


async def test_lost_session_forgets_what_waits_for_completion() -> None:
    """No call is made for them; once their ends were told again, they are completed (R7)."""
    async with asyncio.TaskGroup() as tasks:
        bench = a_bench(tasks)
        bench.commit("a")
        await bench.called(1)
        bench.commit("b", "c")
        bench.pool.answers.put_nowait(SessionLost("gone"))
        await bench.turned()
        assert bench.pool.calls == [["a"]]
        assert [job.phase for job in bench.held_jobs] == [Phase.COMMITTED] * 3
        bench.commit("b", "a")
        bench.pool.answers.put_nowait({})
        await bench.called(2)
        bench.commit("c")
        bench.pool.answers.put_nowait({})
        await bench.emptied()
    assert bench.pool.calls == [["a"], ["b", "a"], ["c"]]
    assert bench.pool.losses == []


async def test_job_whose_completion_fails_alone_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others of its call are gone; no session is lost for it."""
    monkeypatch.setattr(completions, "RETRY_S", 0.0)
    async with asyncio.TaskGroup() as tasks:
        bench = a_bench(tasks)
        bench.commit("bad", "good")
        bench.pool.answers.put_nowait({"bad": "WRONGTYPE"})
        await bench.called(2)
        assert [job.job_id for job in bench.held_jobs] == ["bad"]
        bench.pool.answers.put_nowait({})
        await bench.emptied()
    assert bench.pool.calls == [["bad", "good"], ["bad"]]
    assert bench.pool.losses == []
