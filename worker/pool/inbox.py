"""The inbox: raw entries become jobs, or failed events and dead letters."""

from __future__ import annotations

import json
import re
import secrets
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tokenbus.producer.answers import answer_of
from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.events import Failure, Finish
from tokenbus.producer.contract.keys import REPLY_PATTERN, WIRE_VERSION
from tokenbus.producer.contract.new_job import new_job
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import JobDropped, RequestInvalid
from tokenbus.producer.scripts.replies import JobState, Refused
from tokenbus.worker.logs import get_logger
from tokenbus.worker.pool.refused_body import RefusedBody, without_secret

if TYPE_CHECKING:
    from redis.exceptions import RedisError

    from tokenbus.producer.scripts import Bounds
    from tokenbus.producer.scripts.replies import Ending, InboxEntry
    from tokenbus.worker.held.pool_member import PoolMember

# What a raw entry waits at most on an idle pool; an empty look costs the server about 10 us.
POLL_INTERVAL_S = 0.1
# A server out of memory refuses new jobs: asking it ten times a second does not help.
REFUSED_PAUSE_S = 1.0


class Inbox:
    """Drains the inbox; of all workers one at a time does, which the server sees to."""

    def __init__(self, member: PoolMember, bounds: Bounds) -> None:
        self._cache_groups = member.settings.cache_groups
        self._session = member.session
        self._scripts = member.scripts
        self._completion = member.completion
        self._worker = member.worker
        self._metrics = member.metrics
        self._bounds = bounds
        self._log = get_logger()

    async def run(self) -> None:
        """Drain for ever. It polls, because a raw XADD rings no bell."""
        await self._session.every(
            POLL_INTERVAL_S,
            self.drain,
            refused=self._note_refused,
            refused_pause_s=REFUSED_PAUSE_S,
        )

    async def drain(self) -> None:
        """Take everything that lies in the inbox now.

        Raises: SessionLost; what was not taken stays for the worker that drains next.
        """
        while True:
            asked_at = time.monotonic()
            entries = await self._session.call(
                lambda: self._scripts.queue.drain_inbox(self._worker)
            )
            if not entries:
                return
            for entry in entries:
                await self._take(entry, asked_at)

    def _note_refused(self, error: RedisError) -> None:
        self._log.error("inbox.drain_refused", reason=answer_of(error).told)

    async def _take(self, entry: InboxEntry, asked_at: float) -> None:
        if entry.ending is not None:
            await self._end(entry.ending, asked_at)
            await self._answer(entry, JobAddress(entry.ending.job_id), entry.ending.finish)
            return
        try:
            request = JobRequest.parse(entry.body)
        except RequestInvalid as error:
            failure = Failure("invalid_request", error.message, error.field)
            await self._refuse(entry, failure)
            return
        if request.id is None:
            # Drawn here: a stranger who guessed it could read the answer.
            request = request.model_copy(update={"id": f"raw-{secrets.token_hex(12)}"})
        job = new_job(request, groups=self._cache_groups)
        reply = await self._session.call(
            lambda: self._scripts.queue.submit(job, self._bounds, entry_id=entry.entry_id)
        )
        if not isinstance(reply, Refused):
            self._metrics.inbox_accepted += 1
            address = JobAddress.parse(reply.place.job_id)
            finish = ""
            if reply.place.state is JobState.DONE:
                finish = await self._tell_ending(address)
            await self._answer(entry, address, finish, tenant=request.tenant)
        elif reply.status != "gone":
            await self._refuse(entry, _refusal(reply))

    async def _tell_ending(self, address: JobAddress) -> str:
        """Publish again how a job ended, for who asks for it after that, and return it.

        Nobody else is told anything new: readers have left with the same event.
        Returns: the finish as JSON, empty where the result has expired or was dropped.
        """
        scripts = self._scripts
        stored = await self._session.call(lambda: scripts.log.result(address.text))
        try:
            result = None if stored is None else JobResult.parse(stored)
        except JobDropped:
            result = None
        if result is None:
            return ""
        result = replace(result, tenant=address.tenant)
        *_, last = result.events(sys.maxsize)
        event = json.dumps(last.dump(), separators=(",", ":"))
        await self._session.call(lambda: scripts.log.announce(address.text, event))
        return result.finish.dump()

    async def _refuse(self, entry: InboxEntry, failure: Failure) -> None:
        """Answer an entry under a name of its own: the id that it asks for may be another's."""
        self._metrics.inbox_refused += 1
        name, refused = f"refused-{secrets.token_hex(12)}", RefusedBody.of(entry.body)
        self._log.warning(
            "job.dead_lettered",
            entry_id=entry.entry_id,
            job_id=name,
            named=refused.job_id,
            tenant=refused.tenant,
            error=failure.code,
            error_field=failure.field,
        )
        asked_at = time.monotonic()
        finish = Finish("failed", error=failure)
        rejected = await self._session.call(
            lambda: self._scripts.queue.reject(
                entry.entry_id,
                name,
                finish.dump(),
                without_secret(entry.body),
                named=refused.address,
                tenant=refused.tenant,
            )
        )
        if rejected is None:
            return
        if rejected.is_name_free:
            event = refused.refusal(finish)
            await self._session.call(lambda: self._scripts.log.announce(refused.address, event))
        await self._end(rejected.ending, asked_at)
        await self._answer(entry, JobAddress(name), finish.dump())

    async def _answer(
        self, entry: InboxEntry, address: JobAddress, finish: str = "", *, tenant: str = ""
    ) -> None:
        """Tell the sender of an entry, if it waits, what became of it and where to listen."""
        if not entry.reply_to:
            return
        if re.fullmatch(REPLY_PATTERN, entry.reply_to) is None:
            self._log.warning("inbox.reply_unsaid", entry_id=entry.entry_id)
            return
        wire = {
            "v": WIRE_VERSION,
            "job": address.job_id,
            "tenant": tenant or address.tenant,
            "channel": self._scripts.keys.channel(address.text),
        }
        if finish:
            wire["finish"] = json.loads(finish)
        message = json.dumps(wire, separators=(",", ":"))
        await self._session.call(lambda: self._scripts.queue.reply(entry.reply_to, message))

    async def _end(self, ending: Ending, asked_at: float) -> None:
        await self._session.call(lambda: self._completion.end_unowned(ending, asked_at))


def _refusal(reply: Refused) -> Failure:
    match reply.status:
        case "conflict":
            return Failure("conflict", "the id or idempotency key belongs to a different request")
        case "late":
            return Failure("late", f"it would wait {reply.eta_ms / 1e3:.1f} s, past its deadline")
        case _:
            message = f"the queue is full; try again in {reply.retry_after_ms / 1e3:.1f} s"
            return Failure("queue_full", message)
