"""Scripts and keys of operators and the control service: pauses, webhooks, ticks, leases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.address import JobAddress

if TYPE_CHECKING:
    from tokenbus.producer.contract.keys import Keys
    from tokenbus.producer.scripts.runner import ScriptRunner

# How long a settled webhook and its tries can be read.
ENDED_WEBHOOK_TTL_MS = 3 * 24 * 3600 * 1000


class WebhookState(StrEnum):
    """Where a webhook stands.

    `due` until it is settled: `delivered` (a 2xx answer), `gone` (410: the receiver wants no more),
    `refused` (its address may not be reached), `expired` (past the age at which we give up).
    """

    DUE = "due"
    DELIVERED = "delivered"
    GONE = "gone"
    REFUSED = "refused"
    EXPIRED = "expired"


class WebhookOutcome(StrEnum):
    """What one try came to; `postpone` was no try."""

    DELIVERED = "delivered"
    GONE = "gone"
    REFUSED = "refused"
    RETRY = "retry"
    POSTPONE = "postpone"


@dataclass(frozen=True, slots=True)
class WebhookTry:
    """One try; `status` is the HTTP status, None without an answer; `at_ms` is server time."""

    status: int | None
    error: str = ""
    took_ms: int = 0
    at_ms: int = 0

    def dump(self) -> str:
        """Return the JSON that is stored; the server adds its time."""
        wire = {"status": self.status, "error": self.error, "took_ms": self.took_ms}
        return json.dumps(wire, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Webhook:
    """The webhook of a job, with every try so far."""

    job_id: str
    state: WebhookState
    tenant: str
    url: str
    tries: tuple[WebhookTry, ...]


@dataclass(frozen=True, slots=True)
class ClaimedWebhook:
    """A webhook to try now, of the job at an address; `body` is empty until a try has failed.

    `traceparent` is that of the job. Where it tells of something else, `event` is the name of what
    happened, to `event_of`.
    """

    job_id: str
    claim: int
    tenant: str
    url: str
    metadata: dict[str, str]
    finish: str
    created_ms: int
    num_tries: int
    body: bytes
    event: str = ""
    event_of: str = ""
    traceparent: str = ""


class ControlScripts:
    """Typed calls of operators and the control service.

    Every method raises what `ScriptRunner.run` raises.
    """

    def __init__(self, runner: ScriptRunner, keys: Keys) -> None:
        self._runner = runner
        self._keys = keys

    async def claim_webhooks(self, limit: int, lease_ms: int) -> list[ClaimedWebhook]:
        """Take webhooks that are due; each is due again after `lease_ms` unless it is settled."""
        reply = await self._runner.run(
            "webhook_claim", self._keys.prefix, limit=limit, lease_ms=lease_ms
        )
        return [_claimed(fields) for fields in reply]

    async def record_webhook_try(
        self,
        hook: ClaimedWebhook,
        outcome: WebhookOutcome,
        attempt: WebhookTry,
        *,
        body: bytes = b"",
        delay_ms: int = 0,
        max_age_ms: int = 0,
        keep_ms: int = ENDED_WEBHOOK_TTL_MS,
    ) -> str:
        """Record a try and return the state that follows, `unknown` if the hook is forgotten.

        A retry comes after `delay_ms`, once more at `max_age_ms`, and never later. A success is
        recorded also for a caller whose lease ran out; nothing is recorded once it was settled.
        """
        reply = await self._runner.run(
            "webhook_try",
            self._keys.prefix,
            job=hook.job_id,
            claim=hook.claim,
            outcome=outcome.value,
            attempt=attempt.dump(),
            body=body,
            delay_ms=delay_ms,
            max_age_ms=max_age_ms,
            keep_ms=keep_ms,
        )
        return str(reply.decode())

    async def open_webhook(
        self, name: str, tenant: str, url: str, *, event: str, event_of: str
    ) -> None:
        """Tell a URL of an event that is no job's end; `name` stands for a job's address.

        Safe to repeat: one that is known under the name stays as it is.
        """
        callback = {"url": url, "metadata": {}, "event": event, "event_of": event_of}
        await self._runner.run(
            "webhook_open",
            self._keys.prefix,
            name=name,
            tenant=tenant,
            callback=json.dumps(callback, separators=(",", ":")),
        )

    async def webhook(self, job_id: str, tenant: str = "") -> Webhook | None:
        """Read the webhook of the job at an address; None if there is none.

        With a tenant it is given only if it is that one's, and found where version 1 left it too.
        """
        found = await self._webhook_at(job_id)
        plain = JobAddress.parse(job_id).job_id
        if tenant and found is None and plain != job_id:
            found = await self._webhook_at(plain)
        return None if tenant and found is not None and found.tenant != tenant else found

    async def _webhook_at(self, job_id: str) -> Webhook | None:
        reply = await self._runner.command("HGETALL", self._keys.of("hook", job_id))
        pairs = (
            zip(reply[::2], reply[1::2], strict=True) if isinstance(reply, list) else reply.items()
        )
        fields: dict[str, bytes] = {name.decode(): value for name, value in pairs}
        if "state" not in fields:
            return None
        return Webhook(
            JobAddress.parse(job_id).job_id,
            WebhookState(fields["state"].decode()),
            fields["tenant"].decode(),
            str(json.loads(fields["callback"])["url"]),
            tuple(_try(fields[f"try:{n + 1}"]) for n in range(int(fields["tries"]))),
        )

    async def take_tick(self, cron: str, tick_ms: int) -> bool:
        """Take a cron's tick; False if it, or a later one, was taken before."""
        reply = await self._runner.run("cron_tick", self._keys.prefix, cron=cron, tick_ms=tick_ms)
        return bool(reply)

    async def last_tick(self, cron: str) -> int | None:
        """Return the last tick of a cron that was taken, in ms."""
        reply = await self._runner.command("HGET", self._keys.of("ticks"), cron)
        return None if reply is None else int(reply)

    async def pause(self, *, is_paused: bool) -> int | None:
        """Let pulls take nothing from now on, or go on; return since when they take nothing.

        In ms of the server's time, None if they do. Safe to repeat: the first call counts.
        """
        since = await self._runner.run("pause", self._keys.prefix, is_paused=int(is_paused))
        return int(since) if since else None

    async def drain(self, worker: str, *, is_drained: bool) -> int | None:
        """Let a worker take no more jobs, or take some again; return since when it takes none.

        In ms of the server's time, None if it does, or if no such worker lives. What it holds
        goes on. Safe to repeat: the first call counts. A worker that starts again has a new name.
        """
        _, since = await self._runner.run(
            "drain", self._keys.prefix, worker=worker, is_drained=is_drained
        )
        return int(since) if since else None

    async def watch(self, holder: str, ttl_ms: int) -> bool:
        """Take or keep the lease of who tells the pool's metrics; 0 ms give it up.

        Returns: whether `holder` has, or had, the lease.
        """
        reply = await self._runner.run("watch", self._keys.prefix, holder=holder, ttl_ms=ttl_ms)
        return bool(reply)


def _claimed(fields: list[Any]) -> ClaimedWebhook:
    """Read one claimed hook in the order of webhook_claim.lua."""
    job, claim, tenant, callback, finish, created, tries, body = fields
    wire = json.loads(callback)
    return ClaimedWebhook(
        job.decode(),
        int(claim),
        tenant.decode(),
        wire["url"],
        wire["metadata"],
        finish.decode(),
        int(created),
        int(tries),
        body,
        wire.get("event", ""),
        wire.get("event_of", ""),
        wire.get("traceparent", ""),
    )


def _try(stored: bytes) -> WebhookTry:
    at_ms, wire = stored.split(b" ", 1)
    fields = json.loads(wire)
    return WebhookTry(fields["status"], fields["error"], fields["took_ms"], int(at_ms))
