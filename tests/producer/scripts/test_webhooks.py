"""A job's webhook from its completion to its settlement, by the scripts alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from workers.stubs import StubWorker, a_job, raw, submit, until

from tokenbus.producer.contract.new_job import new_job
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.control import WebhookOutcome, WebhookState, WebhookTry

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.control import ClaimedWebhook

URL = "https://shop.example/answers"
DAY_MS = 86_400_000
OK = WebhookTry(204, took_ms=3)
BUSY = WebhookTry(503, took_ms=3)


async def _ended(scripts: Scripts, job_id: str) -> None:
    """Run a job with a webhook to its end, by hand."""
    request = JobRequest.build(
        id=job_id.partition("@")[0],
        prompt="x",
        tenant="acme",
        callback_url=URL,
        metadata={"order": "7"},
    )
    await submit(scripts, new_job(request))
    worker = StubWorker(scripts)
    await worker.reconcile()
    [job] = (await worker.pull()).jobs
    await worker.run(job.job_id, job.epoch, 2)
    [entry] = (await scripts.log.events(job_id) or [])[-1:]
    assert entry.finish is not None
    for _ in range(2):  # completion may be repeated by anyone
        await JobCompletion(scripts).complete(job_id, entry.finish.dump())


async def _claim(scripts: Scripts, lease_ms: int = 60_000) -> ClaimedWebhook:
    [hook] = await scripts.control.claim_webhooks(10, lease_ms)
    return hook


async def test_completion_makes_one_hook_due(scripts: Scripts) -> None:
    """However often a job is completed, it has one webhook, and one claimer at a time."""
    await _ended(scripts, "a@acme")
    hook = await _claim(scripts)
    assert (hook.job_id, hook.tenant, hook.url) == ("a@acme", "acme", URL)
    assert hook.metadata == {"order": "7"}
    assert json.loads(hook.finish)["usage"]["completion_tokens"] == 2
    assert await scripts.control.claim_webhooks(10, 60_000) == []


async def test_jobs_without_a_callback_have_no_hook(scripts: Scripts) -> None:
    """Nobody is told of a job that named nobody."""
    await submit(scripts, a_job("quiet"))
    await JobCompletion(scripts).cancel("quiet")
    assert await scripts.control.claim_webhooks(10, 60_000) == []
    assert await scripts.control.webhook("quiet") is None


async def test_cancelled_job_tells_too(scripts: Scripts) -> None:
    """Every terminal event is told, also that of a job that never ran."""
    await submit(scripts, new_job(JobRequest.build(id="c", prompt="x", callback_url=URL)))
    await JobCompletion(scripts).cancel("c")
    assert json.loads((await _claim(scripts)).finish)["reason"] == "cancelled"


async def test_claim_of_a_dead_claimer_is_anothers_after_its_lease(scripts: Scripts) -> None:
    """A hook whose claimer dies becomes due again; until then nobody else gets it."""
    await _ended(scripts, "a@acme")
    first = await _claim(scripts, lease_ms=30)
    found: list[ClaimedWebhook] = []

    async def claimed() -> bool:
        found.extend(await scripts.control.claim_webhooks(10, 60_000))
        return bool(found)

    await until(claimed)
    assert found[0].claim == first.claim + 1


async def test_settled_hook_never_changes(scripts: Scripts) -> None:
    """After a recorded success no try is handed out or recorded, and the hook expires."""
    await _ended(scripts, "a@acme")
    hook = await _claim(scripts)
    settle = scripts.control.record_webhook_try
    assert await settle(hook, WebhookOutcome.RETRY, BUSY, max_age_ms=DAY_MS) == "due"
    again = await _claim(scripts)
    assert await settle(again, WebhookOutcome.DELIVERED, OK) == "delivered"
    assert await settle(hook, WebhookOutcome.RETRY, BUSY, max_age_ms=DAY_MS) == "delivered"
    assert await settle(hook, WebhookOutcome.DELIVERED, OK) == "delivered"
    stored = await scripts.control.webhook("a@acme")
    assert stored is not None
    assert stored.state is WebhookState.DELIVERED
    assert [attempt.status for attempt in stored.tries] == [503, 204]
    assert await scripts.control.claim_webhooks(10, 60_000) == []
    assert await raw(scripts).pttl(scripts.keys.of("hook", "a@acme")) > 0
    assert not await raw(scripts).exists(scripts.keys.of("hooks"))


async def test_late_retry_does_not_move_the_claim_of_another(scripts: Scripts) -> None:
    """A caller that overslept its lease leaves the time of the next try to the later claimer."""
    await _ended(scripts, "a@acme")
    late = await _claim(scripts, lease_ms=0)
    await _claim(scripts, lease_ms=60_000)
    await scripts.control.record_webhook_try(late, WebhookOutcome.RETRY, BUSY, max_age_ms=DAY_MS)
    assert await scripts.control.claim_webhooks(10, 60_000) == []


async def test_retries_end_at_the_age(scripts: Scripts) -> None:
    """The try at the set age is the last one."""
    await _ended(scripts, "a@acme")
    hook = await _claim(scripts)
    settle = scripts.control.record_webhook_try
    assert (
        await settle(hook, WebhookOutcome.RETRY, BUSY, delay_ms=DAY_MS, max_age_ms=0) == "expired"
    )
    assert await scripts.control.claim_webhooks(10, 60_000) == []


async def test_a_tick_is_taken_once_and_never_after_a_later_one(scripts: Scripts) -> None:
    """Whoever asks first gets the tick; what comes late gets nothing."""
    take = scripts.control.take_tick
    assert [await take("x", 1000), await take("x", 1000), await take("x", 2000)] == [1, 0, 1]
    assert not await take("x", 1000)
    assert await take("y", 1000)
    assert await scripts.control.last_tick("x") == 2000


async def test_usage_is_counted_once_per_tenant_and_hour(scripts: Scripts) -> None:
    """A job's tokens are in its tenant's hour once, however often it is completed."""
    await _ended(scripts, "a@acme")
    [key] = [key async for key in raw(scripts).scan_iter(scripts.keys.of("usage") + "*")]
    assert await raw(scripts).hgetall(key) == {
        b"acme|jobs": b"1",
        b"acme|prompt_tokens": b"32",
        b"acme|completion_tokens": b"2",
    }
    assert await raw(scripts).pttl(key) > 0


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://shop.example/", "https"),
        ("shop.example", "https"),
        ("https://", "no host"),
        ("https://me:secret@shop.example/", "credentials"),
        ("https://shop.example/a b", "blanks"),
        ("https://shop.example/\r\nX-Evil: 1", "blanks"),
        ("https://shop.example:0/", "no host"),
        ("https://shop.example:99999/", "range"),
        ("https://[::1", "IPv6"),
        ("https://shop.example/" + "x" * 2048, "2048"),
    ],
)
def test_callback_url_that_cannot_be_called_is_refused(url: str, why: str) -> None:
    """What is no HTTP address is refused at submit, and the error names the field."""
    with pytest.raises(RequestInvalid, match=why) as caught:
        JobRequest.build(prompt="x", callback_url=url)
    assert caught.value.field == "callback_url"


async def test_hook_of_version_1_is_delivered(scripts: Scripts) -> None:
    """A webhook that a release of version 1 has made due is handed out like any other."""
    await _ended(scripts, "a@acme")
    redis, keys = raw(scripts), scripts.keys
    await redis.rename(keys.of("hooks"), keys.of("hooks1"))
    assert (await _claim(scripts)).job_id == "a@acme"
    assert await scripts.control.claim_webhooks(10, 60_000) == []
