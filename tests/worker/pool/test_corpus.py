"""The corpus: the engine has the answers of its jobs' scopes, and forgets those that are gone."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

from servers.fixtures import pool, redis_url, scripts, server
from workers.parts import a_member, an_engine
from workers.stubs import raw

from tokenbus.producer.contract.events import Event, Finish
from tokenbus.producer.contract.result import build_result
from tokenbus.producer.scripts.corpus import MAX_NAMES
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.messages.engine import DropAnswers, LearnAnswer
from tokenbus.worker.pool.corpus import Corpus
from tokenbus.worker.session import Session
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.messages.engine import Command

__all__ = ["pool", "redis_url", "scripts", "server"]

ACME, OTHER = "tenant\nacme", "tenant\nother"


class AWorker:
    """A worker of a pool as far as its corpus goes; `sent` is what its engine was told."""

    def __init__(self, scripts: Scripts, speculation: str = "auto") -> None:
        session = Session(scripts.redis, 60.0)
        session.open()
        settings = WorkerSettings.load(speculation=speculation)
        self.member = a_member(scripts=scripts, session=session, settings=settings)
        self.engine, self.sent = an_engine()
        self.corpus = Corpus(self.member, self.engine)

    def holds(self, job_id: str, scope: str = ACME) -> HeldJob:
        """Let a job run here."""
        pulled = PulledJob(job_id, 1, 0, 1, "acme", 1, False, 0, None, b"")
        job = self.member.held_jobs.take(pulled)
        prepared: Any = Mock(cache_salt=scope)
        job.prepared = prepared
        job.timings.added_at = 1.0
        job.move_to(Phase.RUNNING)
        return job

    def ends(self, job: HeldJob) -> None:
        """Let a job be complete."""
        job.finish = Finish("stop")
        self.member.held_jobs.drop(job)

    def learned(self) -> dict[str, list[list[int]]]:
        """Return the answers that the engine has got from here, by group."""
        found: dict[str, list[list[int]]] = {}
        for command in self.sent:
            if isinstance(command, LearnAnswer):
                found.setdefault(command.group, []).append(list(array("i", command.token_ids)))
        return found


def forgotten(sent: list[Command]) -> list[int]:
    """Return the names that an engine was told to forget."""
    return [name for command in sent if isinstance(command, DropAnswers) for name in command.names]


async def write_result(scripts: Scripts, job_id: str, ids: list[int], reason: str = "stop") -> None:
    """Leave the result of a job."""
    ends = tuple(range(1, len(ids) + 1))
    event = Event(job_id, 1, 0, 1, len(ids), text="x" * len(ids), ids=tuple(ids), ends=ends)
    result = build_result(job_id, 1, [event], Finish(reason))
    await raw(scripts).set(scripts.keys.result(job_id), result.dump())


async def test_answers_of_another_worker_reach_the_engine_of_their_scope(scripts: Scripts) -> None:
    """A job that ended there is drafted from here, once, by those who may share its pages."""
    there, here = AWorker(scripts), AWorker(scripts)
    await write_result(scripts, "one", [5, 6, 7])
    await write_result(scripts, "two", [8, 9])
    there.ends(there.holds("one"))
    there.ends(there.holds("two", OTHER))
    await there.corpus.keep_up()
    here.holds("three")
    for _ in range(3):
        await here.corpus.keep_up()
    assert here.learned() == {ACME: [[5, 6, 7]]}
    assert there.learned() == {}, "its engine has its own answers already"


async def test_answer_whose_result_is_gone_is_forgotten(scripts: Scripts) -> None:
    """Whoever drops or outlives a result takes its answer from every engine that has it."""
    there, here = AWorker(scripts), AWorker(scripts)
    job = there.holds("one")
    await write_result(scripts, "one", [5, 6, 7])
    there.ends(job)
    await there.corpus.keep_up()
    here.holds("three")
    await here.corpus.keep_up()
    assert forgotten(here.sent) == forgotten(there.sent) == []
    await raw(scripts).delete(scripts.keys.result("one"))
    await here.corpus.keep_up()
    await there.corpus.keep_up()
    [learned] = [command for command in here.sent if isinstance(command, LearnAnswer)]
    assert forgotten(here.sent) == [learned.name]
    assert learned.name < 0
    assert forgotten(there.sent) == [job.request_id]


async def test_answers_that_are_no_use_are_not_read(scripts: Scripts) -> None:
    """A job that failed, and one without a result, give the engine nothing."""
    there, here = AWorker(scripts), AWorker(scripts)
    await write_result(scripts, "failed", [5, 6, 7], "failed")
    for job_id in ("failed", "without"):
        there.ends(there.holds(job_id))
    await there.corpus.keep_up()
    here.holds("three")
    await here.corpus.keep_up()
    assert here.learned() == {}


async def test_job_that_goes_back_leaves_no_answer(scripts: Scripts) -> None:
    """What the engine began for it is forgotten, and the pool is told nothing."""
    here = AWorker(scripts)
    job = here.holds("one")
    here.member.held_jobs.drop(job)
    await here.corpus.keep_up()
    assert forgotten(here.sent) == [job.request_id]
    assert await scripts.corpus.newest(ACME, 9) == []


async def test_new_engine_is_given_the_answers_again(scripts: Scripts) -> None:
    """An engine that takes the place of another knows nothing."""
    there, here = AWorker(scripts), AWorker(scripts)
    await write_result(scripts, "one", [5, 6, 7])
    there.ends(there.holds("one"))
    await there.corpus.keep_up()
    here.holds("three")
    await here.corpus.keep_up()
    link: Any = Mock(is_alive=True, send=here.sent.append, pid=7)
    here.engine.replace(link)
    await here.corpus.keep_up()
    assert here.learned() == {ACME: [[5, 6, 7], [5, 6, 7]]}


async def test_names_of_a_scope_are_bounded_and_live_as_long_as_results(scripts: Scripts) -> None:
    """The newest stay, and the list expires with the last result that it names."""
    for number in range(MAX_NAMES + 20):
        await scripts.corpus.note(ACME, [f"job-{number}"], 60_000)
    found = await scripts.corpus.newest(ACME, 10 * MAX_NAMES)
    assert len(found) == MAX_NAMES
    [key] = [each async for each in raw(scripts).scan_iter(match=f"{scripts.keys.of('said')}*")]
    assert 0 < await raw(scripts).pttl(key) <= 60_000


async def test_worker_without_speculation_asks_and_tells_nothing(scripts: Scripts) -> None:
    """Neither its engine nor the pool hears of a job that ends."""
    here = AWorker(scripts, "off")
    here.ends(here.holds("one"))
    await here.corpus.run()
    assert here.sent == []
    assert await scripts.corpus.newest(ACME, 9) == []
