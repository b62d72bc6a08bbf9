"""Scripts of the pool that producers and the inbox use: in, out, and ends without an owner.

It is one file because it is one face: each call packs the arguments of a script and reads its
reply.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from tokenbus.producer.answers import answer_of
from tokenbus.producer.scripts.append_batch import pack
from tokenbus.producer.scripts.replies import (
    CancelReply,
    Ending,
    InboxEntry,
    JobRecord,
    JobState,
    Place,
    Refused,
    Rejected,
    Submitted,
    TickReply,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenbus.producer.contract.keys import Keys
    from tokenbus.producer.contract.new_job import NewJob
    from tokenbus.producer.scripts.runner import ScriptRunner
    from tokenbus.producer.scripts.source import Argument

# A caller whose answer is older than this makes no end or takeover from it; the tick does (R10).
STALE_ANSWER_S = 5.0
# How long to stay away when the server's memory is full, not a bound of the queue.
MEMORY_RETRY_MS = 1000
# Jobs of one call of `submit_many` and bytes of their requests: about a millisecond of the server.
MAX_PART, MAX_PART_BYTES = 16, 64 * 1024
MAX_BODY_BYTES = 8 * 1024 * 1024
# The answer to a raw entry that asked for one waits this long for its sender.
REPLY_TTL_MS = 60_000
_RECORD_FIELDS = (
    *("state", "epoch", "owner", "attempts", "tenant", "priority", "finish", "v", "dropped"),
)


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many tokens may wait; `refuse_late` also refuses what cannot start by its deadline."""

    tenant_tokens: int
    pool_tokens: int
    refuse_late: bool = False


class QueueScripts:
    """Typed calls of the pool's queue. Every method raises what `ScriptRunner.run` raises.

    `job_id` is the text of a job's address.
    """

    def __init__(self, runner: ScriptRunner, keys: Keys) -> None:
        self._runner = runner
        self._keys = keys

    async def submit(
        self, job: NewJob, bounds: Bounds, *, ticket: int = 0, entry_id: str = ""
    ) -> Submitted | Refused:
        """Accept a job into its lane, or say why not; idempotent by job id and idempotency key.

        With `entry_id` it moves the raw entry of that id out of the inbox in the same call
        (`gone` if another worker did); refused entries stay there for `reject`.
        """
        args = _submit_args(job, bounds, ticket, entry_id)
        try:
            reply = await self._runner.run_packed("submit", self._keys.prefix, args)
        except RedisError as error:
            reply = error
        return _submitted(reply)

    async def submit_many(
        self, jobs: Sequence[NewJob], bounds: Bounds
    ) -> list[Submitted | Refused]:
        """Submit each of `jobs` in one round trip; they are accepted or refused one by one."""
        parts = list(_parts_of(jobs))
        calls = [[pack([_submit_args(job, bounds, 0, "") for job in part])] for part in parts]
        answers = await self._runner.run_many("submit_many", self._keys.prefix, calls)
        replies = (
            [answer] * len(part) if isinstance(answer, Exception) else answer
            for part, answer in zip(parts, answers, strict=True)
        )
        return [_submitted(reply) for reply in chain.from_iterable(replies)]

    async def drain_inbox(
        self, worker: str, *, count: int = 16, lease_ms: int = 2000, max_bytes: int = MAX_BODY_BYTES
    ) -> list[InboxEntry]:
        """Read the oldest raw entries of the inbox, unless another worker is draining it.

        Entries stay until `submit(entry_id=…)` or `reject` takes them out, so a drainer that dies
        loses nothing and no consumer group can go missing. A body over `max_bytes` is refused here.
        """
        reply = await self._runner.run(
            "drain_inbox",
            self._keys.prefix,
            worker=worker,
            count=count,
            lease_ms=lease_ms,
            max_bytes=max_bytes,
            nonce=secrets.token_hex(16),
        )
        return [
            InboxEntry(
                entry_id.decode(), body, read_ending(ending) if ending else None, reply_to.decode()
            )
            for entry_id, body, reply_to, ending in reply
        ]

    async def reject(
        self,
        entry_id: str,
        job_id: str,
        finish: str,
        body: bytes,
        *,
        named: str = "",
        tenant: str = "",
    ) -> Rejected | None:
        """Dead-letter a raw entry and open a record in `ending` for its failed event.

        The event goes to `job_id`, which nobody else can name; `named` is the address that the body
        asks for, empty if it names none, and is only noted.
        None if another worker took the entry.
        """
        reply = await self._runner.run(
            "reject",
            self._keys.prefix,
            entry=entry_id,
            job=job_id,
            finish=finish,
            body=body,
            named=named,
            tenant=tenant,
        )
        return Rejected(read_ending(reply[0]), bool(reply[1])) if reply else None

    async def reply(self, secret: str, message: str) -> None:
        """Leave the answer to a raw entry where its sender waits for it."""
        await self._runner.run(
            "reply", self._keys.prefix, secret=secret, message=message, ttl_ms=REPLY_TTL_MS
        )

    async def bound_letters(self, num_bytes: int) -> None:
        """Say how many bytes the pool's dead letters may have."""
        await self._runner.command("HSET", self._keys.of("letters"), "limit", num_bytes)

    async def drop_letters(self, entry_ids: Sequence[str]) -> int:
        """Delete dead letters and count those that were still there."""
        return int(
            await self._runner.run("drop_letters", self._keys.prefix, entries=list(entry_ids))
        )

    async def cancel(self, job_id: str, tenant: str = "") -> CancelReply:
        """Take a waiting job out of its lane into `ending`, or flag a held one and tell its owner.

        On `ending` it answers the epoch again, so that a retry can go on (R11). With a tenant only
        a job of that one is known.
        """
        reply = await self._runner.run("cancel", self._keys.prefix, job=job_id, tenant=tenant)
        status, *rest = reply
        match status:
            case b"held":
                return CancelReply("held", job_id=rest[0].decode())
            case b"ending":
                ending = read_ending(rest[0])
                return CancelReply("ending", ending, ending.job_id)
            case _:
                return CancelReply(status.decode())

    async def tick(self, *, limit: int = 64) -> TickReply:
        """Release delays and pass deadlines that are due, and return what has to end now.

        Returned are jobs that just expired while waiting and jobs that lay in `ending` for 5 s;
        each is handed to one ticker per 5 s.
        """
        reply = await self._runner.run(
            "tick", self._keys.prefix, limit=limit, stale_ms=int(STALE_ANSWER_S * 1000)
        )
        endings, is_more_due = reply
        return TickReply(tuple(read_ending(ending) for ending in endings), bool(is_more_due))

    async def raise_epoch(self, job_id: str, epoch: int) -> Ending | None:
        """Raise the epoch of a job in `ending` above a log's that outlived a rollback."""
        reply = await self._runner.run("raise_epoch", self._keys.prefix, job=job_id, epoch=epoch)
        return read_ending(reply) if reply else None

    async def record(self, job_id: str) -> JobRecord | None:
        """Read a job record."""
        reply = await self._runner.command(*self.record_command(job_id))
        return read_record(job_id, reply)

    async def holds_inherited(self, job_id: str, tenant: str, digest: str) -> bool:
        """Tell whether version 1 has accepted this very request under this id."""
        key = self._keys.of("job", job_id)
        owner, told, version = await self._runner.command("HMGET", key, "tenant", "digest", "v")
        return (owner, told, version) == (tenant.encode(), digest.encode(), None)

    def state_command(self, job_id: str) -> tuple[str, ...]:
        """Return the command that reads the state of a job record."""
        return ("HGET", self._keys.of("job", job_id), "state")

    def record_command(self, job_id: str) -> tuple[str, ...]:
        """Return the command that reads a job record, for `read_record`."""
        return ("HMGET", self._keys.of("job", job_id), *_RECORD_FIELDS)


def _submitted(reply: list[Any] | Exception) -> Submitted | Refused:
    """Read what submit.lua answers, or with what the server refused to run it."""
    if isinstance(reply, Exception):
        if answer_of(reply).code == "OOM":
            return Refused("full_memory", retry_after_ms=MEMORY_RETRY_MS)
        raise reply
    status = reply[0].decode()
    if status == "error":
        raise ResponseError(reply[1].decode(errors="replace"))
    if status not in ("accepted", "exists"):
        return Refused(status, *(int(number) for number in reply[1:]))
    _, job_id, state, jobs_ahead, tokens_ahead, eta = reply
    eta_ms = int(eta)
    place = Place(
        job_id.decode(),
        JobState(state.decode()),
        int(jobs_ahead),
        int(tokens_ahead),
        None if eta_ms < 0 else eta_ms,
    )
    return Submitted(place, created=status == "accepted")


def _parts_of(jobs: Sequence[NewJob]) -> Iterator[list[NewJob]]:
    """Yield what one call takes, during which the server answers nobody else."""
    part: list[NewJob] = []
    num_bytes = 0
    for job in jobs:
        if len(part) == MAX_PART or (part and num_bytes + len(job.request) > MAX_PART_BYTES):
            yield part
            part, num_bytes = [], 0
        part.append(job)
        num_bytes += len(job.request)
    if part:
        yield part


def _submit_args(job: NewJob, bounds: Bounds, ticket: int, entry_id: str) -> list[Argument]:
    """Order what `accept` of accepting.lua takes: names would cost 2 us a job."""
    return [
        job.job_id,
        job.tenant,
        job.priority,
        job.weight,
        job.prompt_tokens,
        job.output_tokens,
        job.n,
        job.request,
        job.digest,
        job.idempotency,
        -1 if job.deadline_ms is None else job.deadline_ms,
        job.not_before_ms,
        job.prefix,
        bounds.tenant_tokens,
        bounds.pool_tokens,
        ticket,
        int(bounds.refuse_late),
        entry_id,
        job.callback,
        job.version,
        *((job.listen, job.model) if job.model else filter(None, (job.listen,))),
    ]


def read_ending(reply: list[Any]) -> Ending:
    """Read what `ending_of` of ending.lua says of a job."""
    job_id, epoch, is_done, finish, version, listen = reply
    return Ending(
        job_id.decode(),
        int(epoch),
        bool(int(is_done)),
        finish.decode(),
        int(version),
        listen.decode(),
    )


def read_record(job_id: str, reply: Sequence[bytes | None]) -> JobRecord | None:
    """Read what `record_command` brought; None if there is no such job."""
    if reply[0] is None:
        return None
    state, epoch, owner, attempts, tenant, priority, finish, version, dropped = (
        b"" if value is None else value for value in reply
    )
    return JobRecord(
        job_id,
        JobState(state.decode()),
        int(epoch or 0),
        owner.decode(),
        int(attempts or 0),
        tenant.decode(),
        int(priority or 0),
        finish.decode(),
        int(version or 1),
        is_inherited=not version,
        is_dropped=bool(dropped),
    )
