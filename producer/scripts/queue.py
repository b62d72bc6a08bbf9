"""Scripts of the pool that producers and the inbox use: in, out, and ends without an owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import OutOfMemoryError

from tokenbus.producer.scripts.replies import (
    CancelReply,
    Ending,
    InboxEntry,
    JobRecord,
    JobState,
    Place,
    Refused,
    Submitted,
    TickReply,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.contract.keys import Keys
    from tokenbus.producer.contract.new_job import NewJob
    from tokenbus.producer.scripts.runner import ScriptRunner

# A caller whose answer is older than this makes no end or takeover from it; the tick does (R10).
STALE_ANSWER_S = 5.0
# How long to stay away when the server's memory, not a bound of ours, is full.
MEMORY_RETRY_MS = 1000
MAX_BODY_BYTES = 8 * 1024 * 1024
_RECORD_FIELDS = ("state", "epoch", "owner", "attempts", "tenant", "priority", "finish")


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many tokens may wait; `refuse_late` also refuses what cannot start by its deadline."""

    tenant_tokens: int
    pool_tokens: int
    refuse_late: bool = False


class QueueScripts:
    """Typed calls of the pool's queue. Every method raises what `ScriptRunner.run` raises."""

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
            reply = await self._runner.run("submit", self._keys.prefix, args)
        except OutOfMemoryError as error:
            reply = error
        return _submitted(reply)

    async def submit_many(
        self, jobs: Sequence[NewJob], bounds: Bounds
    ) -> list[Submitted | Refused]:
        """Submit each of `jobs` in one round trip; they are accepted or refused one by one."""
        calls = [_submit_args(job, bounds, 0, "") for job in jobs]
        replies = await self._runner.run_many("submit", self._keys.prefix, calls)
        return [_submitted(reply) for reply in replies]

    async def drain_inbox(
        self, worker: str, *, count: int = 16, lease_ms: int = 2000, max_bytes: int = MAX_BODY_BYTES
    ) -> list[InboxEntry]:
        """Read the oldest raw entries of the inbox, unless another worker is draining it.

        Entries stay until `submit(entry_id=…)` or `reject` takes them out, so a drainer that dies
        loses nothing and no consumer group can go missing. A body over `max_bytes` is refused here.
        """
        reply = await self._runner.run(
            "drain_inbox", self._keys.prefix, [worker, count, lease_ms, max_bytes]
        )
        return [
            InboxEntry(entry_id.decode(), body, read_ending(ending) if ending else None)
            for entry_id, body, ending in reply
        ]

    async def reject(self, entry_id: str, job_id: str, finish: str, body: bytes) -> Ending | None:
        """Dead-letter a raw entry and open a record in `ending` for its failed event.

        The event goes to `job_id`; to `raw-<entry id>` if that is empty or names a known job.
        None if another worker took the entry.
        """
        reply = await self._runner.run(
            "reject", self._keys.prefix, [entry_id, job_id, finish, body]
        )
        return read_ending(reply) if reply else None

    async def cancel(self, job_id: str) -> CancelReply:
        """Take a waiting job out of its lane into `ending`, or flag a held one and tell its owner.

        On `ending` it answers the epoch again, so that a retry can go on (R11).
        """
        reply = await self._runner.run("cancel", self._keys.prefix, [job_id])
        status = reply[0].decode()
        return CancelReply(status, read_ending(reply[1]) if status == "ending" else None)

    async def tick(self, *, limit: int = 64) -> TickReply:
        """Release delays and pass deadlines that are due, and return what has to end now.

        Returned are jobs that just expired while waiting and jobs that lay in `ending` for 5 s;
        each is handed to one ticker per 5 s.
        """
        reply = await self._runner.run(
            "tick", self._keys.prefix, [limit, int(STALE_ANSWER_S * 1000)]
        )
        return TickReply(tuple(read_ending(ending) for ending in reply[0]), bool(reply[1]))

    async def raise_epoch(self, job_id: str, epoch: int) -> Ending | None:
        """Raise the epoch of a job in `ending` above a log's that outlived a rollback."""
        reply = await self._runner.run("raise_epoch", self._keys.prefix, [job_id, epoch])
        return read_ending(reply) if reply else None

    async def expire_record(self, job_id: str, ttl_ms: int) -> bool:
        """Take a completed job out of `ending` and let record and idempotency entry expire (R9)."""
        return bool(await self._runner.run("expire_record", self._keys.prefix, [job_id, ttl_ms]))

    async def record(self, job_id: str) -> JobRecord | None:
        """Read a job record."""
        reply = await self._runner.command(*self.record_command(job_id))
        return read_record(job_id, reply)

    def record_command(self, job_id: str) -> tuple[str, ...]:
        """Return the command that reads a job record, for `read_record`."""
        return ("HMGET", self._keys.of("job", job_id), *_RECORD_FIELDS)


def _submitted(reply: list[Any] | Exception) -> Submitted | Refused:
    """Read what submit.lua answers, or with what the server refused to run it."""
    if isinstance(reply, OutOfMemoryError):
        return Refused("full_memory", retry_after_ms=MEMORY_RETRY_MS)
    if isinstance(reply, Exception):
        raise reply
    status = reply[0].decode()
    if status not in ("accepted", "exists"):
        return Refused(status, *(int(number) for number in reply[1:]))
    job_id, state = reply[1].decode(), JobState(reply[2].decode())
    eta = int(reply[5])
    place = Place(job_id, state, int(reply[3]), int(reply[4]), None if eta < 0 else eta)
    return Submitted(place, created=status == "accepted")


def _submit_args(
    job: NewJob, bounds: Bounds, ticket: int, entry_id: str
) -> list[str | int | float]:
    """Order the arguments as submit.lua reads them."""
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
    ]


def read_ending(reply: list[Any]) -> Ending:
    """Read the four fields of an ending."""
    return Ending(reply[0].decode(), int(reply[1]), bool(int(reply[2])), reply[3].decode())


def read_record(job_id: str, reply: Sequence[bytes | None]) -> JobRecord | None:
    """Read what `record_command` brought; None if there is no such job."""
    if reply[0] is None:
        return None
    state, epoch, owner, attempts, tenant, priority, finish = (
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
    )
