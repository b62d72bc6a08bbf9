"""Delivery of webhooks: claims what is due, posts, and records each try with the server.

A webhook, its next time and its tries live with the pool, written by the completion of the job
and by the script that records a try, so that delivery survives this process. A claim is a lease:
what a killed service had claimed is due again once the lease is over, and a recorded success is
never tried again. arq's own retries are not used for it: a killed arq worker's jobs stay locked for
the longest timeout of all its functions, a job is forgotten after a day, and a try costs five round
trips.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.contract.address import JobAddress, whole_tenant
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.errors import JobDropped
from tokenbus.producer.scripts.control import WebhookOutcome, WebhookState, WebhookTry
from tokenbus.producer.telemetry.tracing import EndedSpan, TraceContext, Tracer
from tokenbus.worker.control.metrics import ControlMetrics
from tokenbus.worker.control.webhooks.courier import PostReply
from tokenbus.worker.control.webhooks.event import event_body, message_id
from tokenbus.worker.control.webhooks.signature import (
    EARLIER_HEADER,
    earlier_signature,
    signed_headers,
)
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.control import ClaimedWebhook
    from tokenbus.worker.control.settings import ControlSettings
    from tokenbus.worker.control.webhooks.courier import Courier

POLL_INTERVAL_S = 0.2
# Between the end of a POST and its record; a call to the server takes a fraction of it.
_RECORD_MARGIN_S = 5.0
_BUSY_PAUSE_S = 1.0
_OUTAGE_PAUSE_S = 1.0
_GONE = 410


class Webhooks:
    """Delivers the webhooks of one pool."""

    def __init__(
        self,
        scripts: Scripts,
        courier: Courier,
        *,
        keys: dict[str, tuple[str, ...]],
        settings: ControlSettings,
        metrics: ControlMetrics | None = None,
    ) -> None:
        self._metrics = metrics or ControlMetrics()
        self._scripts = scripts
        self._courier = courier
        self._keys = keys
        self._settings = settings
        self._lease_s = settings.webhook_timeout_s + _RECORD_MARGIN_S
        # A receiver that never answers, and a tenant with many of them, hold up their own calls.
        self._max_per_party = max(1, settings.webhook_concurrency // 2)
        self._parties: Counter[str] = Counter()
        self._running: set[asyncio.Task[None]] = set()
        self._tracer = Tracer()
        self._log = get_logger()

    async def run(self) -> None:
        """Deliver for ever; a server that is away is asked again."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                room = self._settings.webhook_concurrency - len(self._running)
                claimed = await self._claim(room)
                claimed_at = time.monotonic()
                for hook in claimed:
                    task = tasks.create_task(self._deliver(hook, claimed_at))
                    self._running.add(task)
                    task.add_done_callback(self._running.discard)
                if len(claimed) < room or not self._running:
                    await asyncio.sleep(POLL_INTERVAL_S)
                else:
                    await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)

    async def _claim(self, room: int) -> list[ClaimedWebhook]:
        try:
            claimed = await self._scripts.control.claim_webhooks(room, int(self._lease_s * 1000))
        except SERVER_ERRORS as error:
            self._log.warning("webhook.claim_failed", reason=answer_of(error).told)
            await asyncio.sleep(_OUTAGE_PAUSE_S)
            return []
        return [self._of_tenant(hook) for hook in claimed]

    def _of_tenant(self, hook: ClaimedWebhook) -> ClaimedWebhook:
        """Return a hook in the name of the tenant that has the keys; a share's is not its own."""
        has_keys = hook.tenant in self._keys
        return hook if has_keys else replace(hook, tenant=whole_tenant(hook.tenant))

    async def _deliver(self, hook: ClaimedWebhook, claimed_at: float) -> None:
        """Try one hook; what cannot be recorded is tried again when the lease is over."""
        parties = (f"host {_host(hook.url)}", f"tenant {hook.tenant}")
        self._parties.update(parties)
        try:
            if any(self._parties[party] > self._max_per_party for party in parties):
                pause_s = _BUSY_PAUSE_S * random.uniform(0.5, 1.0)
                await self._record_try(hook, WebhookOutcome.POSTPONE, PostReply(None), b"", pause_s)
                return
            body = hook.body or await self._body(hook)
            answer = await self._try(hook, body, claimed_at)
            if answer is not None:
                await self._record_try(
                    hook, _outcome(answer), answer, body, self._delay_s(hook, answer)
                )
        except SERVER_ERRORS as error:
            self._log.warning(
                "webhook.record_failed", job_id=hook.job_id, reason=answer_of(error).told
            )
        except Exception as error:
            # The job boundary: one hook takes down no other.
            self._log.exception("webhook.failed", job_id=hook.job_id)
            await self._record_bug(hook, error)
        finally:
            self._parties.subtract(parties)
            # What counts nothing is dropped, or every host ever called would stay.
            self._parties = +self._parties

    async def _try(self, hook: ClaimedWebhook, body: bytes, claimed_at: float) -> PostReply | None:
        """Post the body; None where the claim grew too old for it, so that another may have it."""
        keys = self._keys.get(hook.tenant)
        if keys is None:
            return PostReply(None, f"tenant {hook.tenant} has no signing key (webhook_keys)")
        if time.monotonic() - claimed_at > _RECORD_MARGIN_S / 2:
            return None
        now_s = int(time.time())
        headers = {
            "content-type": "application/json",
            "user-agent": "tokenbus",
            **signed_headers(keys, message_id(hook), now_s, body),
            "tokenbus-job": JobAddress.parse(hook.job_id).job_id,
            "tokenbus-tenant": hook.tenant,
            "tokenbus-try": str(hook.num_tries + 1),
        }
        if self._settings.webhook_earlier_signature:
            headers[EARLIER_HEADER] = earlier_signature(keys, now_s, body)
        trace = TraceContext.parse(hook.traceparent)
        if trace is None:
            return await self._courier.post(hook.url, headers, body)
        return await self._traced(hook, trace, headers, body)

    async def _traced(
        self, hook: ClaimedWebhook, trace: TraceContext, headers: dict[str, str], body: bytes
    ) -> PostReply:
        """Post under the job's trace; the receiver is told of the span that tells of this try."""
        attempt, began_at = hook.num_tries + 1, time.monotonic()
        own = trace.of_owner(f"webhook of {hook.job_id}", attempt)
        answer = await self._courier.post(
            hook.url, headers | {"traceparent": own.traceparent}, body
        )
        outcome = _outcome(answer)
        span = EndedSpan(
            name="tokenbus.webhook",
            began_at=began_at,
            ended_at=time.monotonic(),
            attributes={
                "tokenbus.job_id": hook.job_id,
                "tokenbus.tenant": hook.tenant,
                "tokenbus.attempt": attempt,
                "tokenbus.outcome": outcome.value,
                "http.response.status_code": answer.status or 0,
            },
            context=own,
            is_error=outcome is not WebhookOutcome.DELIVERED,
        )
        self._tracer.tell(trace, span)
        return answer

    async def _record_bug(self, hook: ClaimedWebhook, error: Exception) -> None:
        """Count a try that failed in this process, so that the hook ends at its age."""
        answer = PostReply(None, f"internal error: {type(error).__name__}")
        try:
            await self._record_try(
                hook, WebhookOutcome.RETRY, answer, b"", self._delay_s(hook, answer)
            )
        except SERVER_ERRORS as away:
            self._log.warning(
                "webhook.record_failed", job_id=hook.job_id, reason=answer_of(away).told
            )

    def _delay_s(self, hook: ClaimedWebhook, answer: PostReply) -> float:
        """Return how long to wait: doubled each time, spread, and never less than asked for."""
        settings = self._settings
        longest = min(
            settings.webhook_max_backoff_s,
            settings.webhook_backoff_s * 2.0 ** min(hook.num_tries, 32),
        )
        asked_s = min(answer.retry_after_s or 0.0, settings.webhook_max_age_s)
        return max(longest * random.uniform(0.5, 1.0), asked_s)

    async def _record_try(
        self,
        hook: ClaimedWebhook,
        outcome: WebhookOutcome,
        answer: PostReply,
        body: bytes,
        delay_s: float,
    ) -> None:
        state = await self._scripts.control.record_webhook_try(
            hook,
            outcome,
            WebhookTry(answer.status, answer.error, answer.took_ms),
            body=body,
            delay_ms=int(delay_s * 1000),
            max_age_ms=int(self._settings.webhook_max_age_s * 1000),
        )
        if outcome is not WebhookOutcome.POSTPONE or state == WebhookState.EXPIRED:
            self._metrics.webhooks["retried" if state == WebhookState.DUE else state] += 1
        if outcome is not WebhookOutcome.POSTPONE:
            self._metrics.webhook_time.add(answer.took_ms / 1000)
            self._log.info(
                "webhook.tried",
                job_id=hook.job_id,
                tenant=hook.tenant,
                attempt=hook.num_tries + 1,
                status=answer.status,
                error=answer.error or None,
                took_ms=answer.took_ms,
                state=state,
            )

    async def _body(self, hook: ClaimedWebhook) -> bytes:
        """Put the event together, of the job's result where that is still kept."""
        stored = None if hook.event else await self._scripts.log.result(hook.job_id)
        try:
            result = None if stored is None else JobResult.parse(stored)
        except JobDropped:
            result = None
        return event_body(hook, result)


def _host(url: str) -> str:
    """Return the host that a URL names, the whole URL where it is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return url


def _outcome(answer: PostReply) -> WebhookOutcome:
    if answer.is_refused:
        return WebhookOutcome.REFUSED
    if answer.status == _GONE:
        return WebhookOutcome.GONE
    if answer.status is not None and 200 <= answer.status < 300:
        return WebhookOutcome.DELIVERED
    return WebhookOutcome.RETRY
