"""Look-ups of jobs: what the server knows of them, asked for many streams at once.

A web backend opens a stream for every user. Three calls of redis-py for each, one after the other,
cost it ten times the CPU time of reading a token and three round trips before the first.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress
from tokenbus.producer.contract.events import messages_of, told
from tokenbus.producer.contract.keys import WIRE_VERSION
from tokenbus.producer.scripts.log import chat_of, is_whole, last_index, take_page
from tokenbus.producer.scripts.queue import read_record
from tokenbus.producer.server.cluster import ClusterRedis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.contract.messages.job_messages import JobMessages
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.replies import JobRecord

# Jobs of one round trip: more would keep the first of a crowd waiting for the last.
_NUM_TOGETHER = 64


@dataclass(frozen=True, slots=True)
class KnownJob:
    """A job as the server has it; each part is None where there is none. It lies at `place`.

    The record was read first, then the log, then the result: if the record is done, terminal entry
    and result had been written before the others were read. `messages` has read all of the log of a
    job whose answers are messages: its events tell their deltas.
    """

    record: JobRecord | None
    events: list[Event] | None
    result: bytes | None
    place: str = field(default="", compare=False)
    messages: JobMessages | None = field(default=None, compare=False)

    def as_of(self, address: JobAddress) -> KnownJob:
        """Name tenant and wire version in the events, which a log does not."""
        version = self.record.version if self.record is not None else WIRE_VERSION
        if self.events is None or (address.text == self.place and version == WIRE_VERSION):
            return self
        named = {"tenant": address.tenant, "version": version}
        events = [msgspec.structs.replace(event, **named) for event in self.events]
        return replace(self, events=events)


@dataclass(slots=True)
class _Question:
    """A job that is asked for, and who waits for the three replies."""

    job_id: str
    replies: asyncio.Future[list[Any]]


class Lookup:
    """Reads what is known of jobs; who asks in one turn of the event loop shares a round trip."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._questions: list[_Question] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def look(self, job_id: str, cursor: int, tenant: str = DEFAULT_TENANT) -> KnownJob:
        """Return what is known of a tenant's job, of its log the events after `cursor`.

        A job that version 1 accepted is found at its id alone, by its tenant only. Deltas are told
        but for a `cursor` past every token, which asks for the end alone.
        Raises: TimeoutError, redis.ConnectionError, redis.ResponseError.
        """
        address = JobAddress(job_id, tenant)
        known = await self._look_at(address.text, cursor)
        if known.record is not None and not known.record.is_of(address.tenant):
            return KnownJob(None, None, None, address.text)
        if known.record is None and known.result is None and not address.is_plain:
            inherited = await self._scripts.queue.record(address.job_id)
            if inherited is not None and inherited.is_inherited_by(address.tenant):
                known = await self._look_at(address.job_id, cursor)
        return known.as_of(address)

    async def states(self, job_ids: Sequence[str]) -> list[bytes | None]:
        """Return the states of records, by the texts of addresses; None where there is none.

        Raises: as `look`.
        """
        queue = self._scripts.queue
        return await self._read_each([queue.state_command(job_id) for job_id in job_ids])

    async def last_indices(self, job_ids: Sequence[str]) -> list[int | None]:
        """Return how far logs are, by the texts of addresses: the index of the last token.

        None of one that has ended. Raises: as `look`.
        """
        log = self._scripts.log
        pages = await self._read_each([log.tail_command(job_id) for job_id in job_ids])
        return [last_index(page) for page in pages]

    async def results(self, job_ids: Sequence[str]) -> list[bytes | None]:
        """Return the stored results at the texts of addresses. Raises: as `look`."""
        log = self._scripts.log
        return await self._read_each([log.result_command(job_id) for job_id in job_ids])

    async def _read_each(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        """Make calls in one round trip. Raises: the error of the first that was refused."""
        pipeline: Any = self._scripts.redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        async with asyncio.timeout(self._scripts.timeout_s):
            replies: list[Any] = await pipeline.execute()
        return replies

    async def _look_at(self, job_id: str, cursor: int) -> KnownJob:
        """Return what lies at the text of an address."""
        queue, log = self._scripts.queue, self._scripts.log
        if isinstance(self._scripts.redis, ClusterRedis):
            # Record and log may lie on two nodes, which keep no order between them.
            record = await queue.record(job_id)
            events = await log.events(job_id, cursor)
            known = KnownJob(record, events, await log.result(job_id), job_id)
            return await self._told(known, cursor, None)
        fields, page, result = await self._ask(job_id)
        found: list[Event] = []
        events = found if page else None
        if take_page(job_id, cursor, page, found):
            found.reverse()
        else:
            events = await log.events(job_id, cursor)
            result = await log.result(job_id) if events is None else result
        known = KnownJob(read_record(job_id, fields), events, result, job_id)
        return await self._told(known, cursor, page if is_whole(page) else None)

    async def _told(self, known: KnownJob, cursor: int, whole: Sequence[Any] | None) -> KnownJob:
        """Put deltas into the events of a log, if its answers are messages.

        A message is read from its beginning, so the log is, where there is anything new in it.
        `whole` are all of its entries, latest first, where they are at hand.
        """
        events, log, job_id = known.events, self._scripts.log, known.place
        if not events or cursor >= sys.maxsize:
            return known
        chat = await log.chat(job_id) if whole is None else chat_of(whole)
        messages = messages_of(chat, job_id)
        if messages is None:
            return known
        all_events: list[Event] | None = events
        if cursor:
            all_events = await log.events(job_id)
        if all_events is None:
            # Completion has put the result into the log's place meanwhile.
            return replace(known, events=None, result=await log.result(job_id))
        return replace(known, events=list(told(all_events, messages, cursor)), messages=messages)

    async def _ask(self, job_id: str) -> list[Any]:
        loop = asyncio.get_running_loop()
        question = _Question(job_id, loop.create_future())
        if not self._questions:
            loop.call_soon(self._send)
        self._questions.append(question)
        async with asyncio.timeout(self._scripts.timeout_s):
            return await question.replies

    def _send(self) -> None:
        questions, self._questions = self._questions, []
        for first in range(0, len(questions), _NUM_TOGETHER):
            part = questions[first : first + _NUM_TOGETHER]
            task = asyncio.get_running_loop().create_task(self._run(part))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run(self, questions: list[_Question]) -> None:
        """Answer questions with the replies, or with the error that came instead."""
        queue, log = self._scripts.queue, self._scripts.log
        pipeline: Any = self._scripts.redis.pipeline(transaction=False)
        for question in questions:
            pipeline.execute_command(*queue.record_command(question.job_id))
            pipeline.execute_command(*log.page_command(question.job_id))
            pipeline.execute_command(*log.result_command(question.job_id))
        try:
            async with asyncio.timeout(self._scripts.timeout_s):
                replies = await pipeline.execute(raise_on_error=False)
        except Exception as error:
            replies = [error] * 3 * len(questions)
        for number, question in enumerate(questions):
            if question.replies.done():
                continue
            answer = replies[3 * number : 3 * number + 3]
            refusal = next((reply for reply in answer if isinstance(reply, Exception)), None)
            if refusal is None:
                question.replies.set_result(answer)
            else:
                question.replies.set_exception(refusal)
