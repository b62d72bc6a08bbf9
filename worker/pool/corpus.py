"""The corpus: answers of the pool that the engine drafts from, and those that it has to forget.

The engine keeps the answers that it gives itself. Those of other workers are read here, for the
cache scopes whose jobs this worker holds, at first sight and then a few a second. What an answer's
group may see is what may share its cached pages, and no answer outlives its result: a job whose
result is gone, expired or dropped, is forgotten by the engine within a minute.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from itertools import islice
from typing import TYPE_CHECKING

from tokenbus.engine.config import EngineConfig
from tokenbus.producer.answers import answer_of
from tokenbus.worker.logs import get_logger
from tokenbus.worker.messages.engine import DropAnswers, LearnAnswer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis.exceptions import RedisError

    from tokenbus.worker.engine.current_engine import CurrentEngine
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.held.pool_member import PoolMember

TICK_INTERVAL_S = 1.0
# Jobs whose answers the engine may have, the newest; and how many of them a tick looks after, so
# that each is looked after once in half a minute.
MAX_KNOWN, _MAX_CHECKED = 4096, 128
# Scopes that are read, those seen last; and the jobs of one that are read at first and later on.
_MAX_SCOPES, _FIRST_READ, _LATER_READ = 64, 64, 16
# Jobs that ended here and are not noted yet; of a busy worker the oldest are left out.
_MAX_ENDED = 256


class Corpus:
    """Keeps the engine's answers in step with the results of the pool."""

    def __init__(self, member: PoolMember, engine: CurrentEngine) -> None:
        settings = member.settings
        config = settings.engine_config()
        self._is_on = isinstance(config, EngineConfig) and config.speculation == "auto"
        self._session = member.session
        self._calls = member.scripts.corpus
        self._ttl_ms = int(settings.result_ttl_s * 1000)
        self._held_jobs = member.held_jobs
        self._engine = engine
        self._engine_pid: int | None = None
        # Job -> the number under which the engine has its answers, the oldest first.
        self._known: dict[str, int] = {}
        self._scopes: dict[str, None] = {}
        self._ended: deque[tuple[str, str]] = deque(maxlen=_MAX_ENDED)
        self._num_read = 0
        self._log = get_logger()
        if self._is_on:
            member.held_jobs.when_gone(self.gone)

    async def run(self) -> None:
        """Keep up for ever, where the engine drafts."""
        if self._is_on:
            await self._session.every(TICK_INTERVAL_S, self.keep_up, refused=self._note_refused)

    def gone(self, job: HeldJob) -> None:
        """Take note of a job that has left: its answers stay if it is complete."""
        if job.prepared is None or not job.was_added:
            return
        self._see_engine()
        if job.finish is None:
            self._engine.send(DropAnswers([job.request_id]))
        else:
            self._take(job.job_id, job.request_id)
            self._ended.append((job.prepared.cache_salt, job.job_id))

    async def keep_up(self) -> None:
        """Tell the pool what ended here, read what ended elsewhere, and forget what is gone."""
        self._see_engine()
        await self._note_ended()
        fresh = {job.prepared.cache_salt for job in self._held_jobs if job.prepared is not None}
        for scope in islice(fresh - self._scopes.keys(), 1):
            self._scopes[scope] = None
            await self._read(scope, _FIRST_READ)
        if len(self._scopes) > _MAX_SCOPES:
            del self._scopes[next(iter(self._scopes))]
        for scope in list(islice(self._scopes, 1)):
            # To the end of the line.
            self._scopes[scope] = self._scopes.pop(scope)
            await self._read(scope, _LATER_READ)
        await self._check()

    def _see_engine(self) -> None:
        """Begin anew where the engine is another one: it knows nothing."""
        if self._engine.pid != self._engine_pid:
            self._engine_pid = self._engine.pid
            self._known.clear()
            self._scopes.clear()

    async def _note_ended(self) -> None:
        ended: defaultdict[str, list[str]] = defaultdict(list)
        while self._ended:
            scope, job = self._ended.popleft()
            ended[scope].append(job)
        for scope, jobs in ended.items():
            await self._session.call(lambda: self._calls.note(scope, jobs, self._ttl_ms))  # noqa: B023 - called at once

    async def _read(self, scope: str, count: int) -> None:
        """Give the engine the answers of a scope that it does not have."""
        newest = await self._session.call(lambda: self._calls.newest(scope, count))
        jobs = [job for job in newest if job not in self._known]
        if not jobs:
            return
        answers = await self._session.call(lambda: self._calls.answers(jobs))
        for job, choices in zip(jobs, answers, strict=True):
            # Below zero, where no request of this worker is.
            self._num_read += 1
            self._take(job, -self._num_read)
            for ids in choices:
                self._engine.send(LearnAnswer(-self._num_read, scope, array("i", ids).tobytes()))

    async def _check(self) -> None:
        """Look after the jobs that were not for the longest time."""
        jobs = list(islice(self._known, _MAX_CHECKED))
        if not jobs:
            return
        have_results = await self._session.call(lambda: self._calls.have_results(jobs))
        gone = [job for job, is_there in zip(jobs, have_results, strict=True) if not is_there]
        self._drop(gone)
        for job in jobs:
            if job in self._known:
                self._known[job] = self._known.pop(job)

    def _take(self, job: str, number: int) -> None:
        self._known[job] = number
        if len(self._known) > MAX_KNOWN:
            self._drop([next(iter(self._known))])

    def _drop(self, jobs: Iterable[str]) -> None:
        numbers = [self._known.pop(job) for job in jobs]
        if numbers:
            self._engine.send(DropAnswers(numbers))

    def _note_refused(self, error: RedisError) -> None:
        self._log.warning("corpus.refused", reason=answer_of(error).told)
