"""Webhooks as their receivers see them: signed, repeated until answered, told once."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from patience import PATIENCE_S
from workers.control_processes import KEY, receiver
from workers.stubs import StubWorker, raw, submit, until

from tokenbus.producer.contract.new_job import new_job
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.control import WebhookState
from tokenbus.producer.stored.derived_ids import (
    RESPONSE_FIELD,
    draw_batch_id,
    name_of_batch,
)
from tokenbus.worker.control.settings import ControlSettings
from tokenbus.worker.control.webhooks.addresses import AddressPolicy
from tokenbus.worker.control.webhooks.courier import Courier
from tokenbus.worker.control.webhooks.delivery import Webhooks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from workers.control_processes import Call

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.control import Webhook

DOCS = Path(__file__).resolve().parents[3] / "docs" / "control.md"
LOOPBACK = ["127.0.0.1/32"]
NEW_KEY, OTHER_KEY = ("whsec_" + base64.b64encode(letter * 32).decode() for letter in (b"n", b"o"))
# As the release before had them.
PLAIN_KEY = "a-key-of-sixteen-letters-or-more"


async def ended(
    scripts: Scripts,
    job_id: str,
    url: str,
    *,
    reason: str = "stop",
    **fields: Any,
) -> None:
    """Run a job with a webhook to its end, by hand."""
    request = JobRequest.build(
        **({"id": job_id, "prompt": "x", "tenant": "acme", "callback_url": url} | fields)
    )
    await submit(scripts, new_job(request))
    worker = StubWorker(scripts)
    await worker.reconcile()
    [job] = (await worker.pull()).jobs
    await worker.start(job.job_id, job.epoch)
    await worker.append(job.job_id, job.epoch, 1, 2)
    await worker.end(job.job_id, job.epoch, 2, reason)
    event = (await scripts.log.events(job.job_id) or [])[-1]
    assert event.finish is not None
    await JobCompletion(scripts).complete(job.job_id, event.finish.dump())


@asynccontextmanager
async def delivering(scripts: Scripts, **values: Any) -> AsyncIterator[None]:
    """Deliver the webhooks of a pool beside the test."""
    fast = {
        "webhook_keys": {"acme": KEY},
        "webhook_allowed_networks": LOOPBACK,
        "webhook_backoff_s": 0.02,
        "webhook_timeout_s": 5,
    }
    settings = ControlSettings.load(**(fast | values))
    policy = AddressPolicy(settings.webhook_allowed_networks)
    async with Courier(policy, settings.webhook_timeout_s, 16) as courier:
        webhooks = Webhooks(scripts, courier, keys=settings.signing_keys(), settings=settings)
        task = asyncio.create_task(webhooks.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


async def settled(scripts: Scripts, job_id: str) -> Webhook:
    """Wait until nothing more will happen to a job's webhook."""

    async def is_settled() -> bool:
        hook = await scripts.control.webhook(job_id)
        return hook is not None and hook.state is not WebhookState.DUE

    await until(is_settled)
    hook = await scripts.control.webhook(job_id)
    assert hook is not None
    return hook


async def tried(scripts: Scripts, job_id: str, count: int = 1) -> Webhook:
    """Wait until a job's webhook was tried."""

    async def is_tried() -> bool:
        hook = await scripts.control.webhook(job_id)
        return hook is not None and len(hook.tries) >= count

    await until(is_tried)
    hook = await scripts.control.webhook(job_id)
    assert hook is not None
    return hook


async def test_receiver_that_fails_and_hangs_is_told_once(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five failures, one silence, then an answer: seven tries, one recorded success."""
    silent, post = asyncio.Event(), Courier.post

    async def hurried(self: Courier, url: str, headers: Any, body: bytes) -> Any:
        # On a busy machine any other answer may take longer than the silence is borne.
        self._timeout_s = 0.5 if headers["tokenbus-try"] == "6" else PATIENCE_S
        return await post(self, url, headers, body)

    monkeypatch.setattr(Courier, "post", hurried)

    async def answer(call: Call) -> web.Response:
        number = int(call.headers["tokenbus-try"])
        if number <= 5:
            return web.Response(status=503)
        if number == 6:
            await silent.wait()
        return web.Response(status=200)

    async with receiver(answer) as shop, delivering(scripts):
        await ended(scripts, "a", shop.url(), metadata={"order": "7"})
        hook = await settled(scripts, "a@acme")
        silent.set()
    assert hook.state is WebhookState.DELIVERED
    assert [attempt.status for attempt in hook.tries] == [503] * 5 + [None, 200]
    assert "no answer within 0.5 s" in hook.tries[5].error
    assert all(attempt.at_ms > 0 for attempt in hook.tries)
    assert len(shop.calls) == 7
    assert len({call.body for call in shop.calls}) == 1
    message = shop.calls[-1].message
    assert message["job"] == "a"
    assert message["metadata"] == {"order": "7"}
    assert message["finish"]["usage"]["completion_tokens"] == 2
    assert message["choices"] == [{"index": 0, "text": "001 002 ", "reason": "stop"}]


async def test_job_of_a_user_is_told_in_the_name_of_its_tenant(scripts: Scripts) -> None:
    """A share of a tenant has no keys of its own; a tenant whose name looks like one may have."""
    own = {"acme": KEY, "team/ab": OTHER_KEY}
    async with receiver() as shop, delivering(scripts, webhook_keys=own):
        for tenant, told in (("acme/1f", "acme"), ("team/ab", "team/ab")):
            await ended(scripts, "a", shop.url(), tenant=tenant)
            assert (await settled(scripts, f"a@{tenant}")).state is WebhookState.DELIVERED
            assert shop.calls[-1].headers["tokenbus-tenant"] == told
            assert shop.calls[-1].message["tenant"] == told


async def test_signature_is_what_the_docs_check(scripts: Scripts) -> None:
    """The check in the docs accepts the call, and no other body, id, key or hour."""
    [check] = re.findall(r"```python\n(import base64.*?)```", DOCS.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(check, names)  # noqa: S102 -- the example as it stands
    is_ours = names["is_ours"]
    async with receiver() as shop, delivering(scripts, webhook_keys={"acme": f"{KEY} {NEW_KEY}"}):
        await ended(scripts, "a", shop.url())
        await settled(scripts, "a@acme")
    [call] = shop.calls
    headers = call.headers
    assert "tokenbus-signature" not in headers
    assert is_ours(headers, call.body, KEY)
    assert is_ours(headers, call.body, NEW_KEY)
    assert not is_ours(headers, call.body + b" ", KEY)
    assert not is_ours(headers | {"webhook-id": "evt_other"}, call.body, KEY)
    assert not is_ours(headers, call.body, OTHER_KEY)
    assert not is_ours(headers | {"webhook-timestamp": "1700000000"}, call.body, KEY)
    assert not is_ours({}, call.body, KEY)


@pytest.mark.clients
async def test_public_verifiers_accept_the_call(scripts: Scripts) -> None:
    """The package of the rules and OpenAI's client take the call under either key, and no other."""
    standard = pytest.importorskip("standardwebhooks")
    openai = pytest.importorskip("openai")
    keys = {"acme": f"{KEY} {NEW_KEY}", "plain": PLAIN_KEY}
    async with receiver() as shop, delivering(scripts, webhook_keys=keys):
        await ended(scripts, "a", shop.url())
        await ended(scripts, "b", shop.url(), tenant="plain")
        await settled(scripts, "a@acme")
        await settled(scripts, "b@plain")
    calls = {call.message["job"]: call for call in shop.calls}
    client = openai.OpenAI(api_key="x")
    for job, key in (("a", KEY), ("a", NEW_KEY), ("b", PLAIN_KEY)):
        call = calls[job]
        assert client.webhooks.unwrap(call.body, call.headers, secret=key).type == "job.ended"
    encoded = base64.b64encode(PLAIN_KEY.encode()).decode()
    for job, key in (("a", KEY), ("a", NEW_KEY), ("b", encoded)):
        call = calls[job]
        assert standard.Webhook(key).verify(call.body, call.headers)["type"] == "job.ended"
    with pytest.raises(standard.WebhookVerificationError):
        standard.Webhook(OTHER_KEY).verify(calls["a"].body, calls["a"].headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(calls["a"].body, calls["a"].headers, secret=OTHER_KEY)


async def test_earlier_form_is_sent_where_a_setting_asks_for_it(scripts: Scripts) -> None:
    """Receivers of the release before check what they always did, under the key that they have."""
    keys = {"acme": PLAIN_KEY}
    async with (
        receiver() as shop,
        delivering(scripts, webhook_keys=keys, webhook_earlier_signature=True),
    ):
        await ended(scripts, "a", shop.url())
        await settled(scripts, "a@acme")
    [call] = shop.calls
    stamp, _, signature = call.headers["tokenbus-signature"].partition(",")
    message = stamp.removeprefix("t=").encode() + b"." + call.body
    wanted = hmac.new(PLAIN_KEY.encode(), message, hashlib.sha256).hexdigest()
    assert signature == f"v1={wanted}"


async def test_event_has_one_id_at_every_try(scripts: Scripts) -> None:
    """Receivers tell a repeated call by its id, which is the body's and of no other event."""

    async def answer(call: Call) -> web.Response:
        return web.Response(status=503 if call.headers["tokenbus-try"] == "1" else 200)

    async with receiver(answer) as shop, delivering(scripts):
        await ended(scripts, "a", shop.url())
        await settled(scripts, "a@acme")
        await ended(scripts, "b", shop.url())
        await settled(scripts, "b@acme")
    named = [(call.message["job"], call.headers["webhook-id"]) for call in shop.calls]
    assert len(named) == 4
    assert len(set(named)) == len({name for _, name in named}) == 2
    assert all(call.message["id"] == call.headers["webhook-id"] for call in shop.calls)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("stop", "response.completed"),
        ("length", "response.incomplete"),
        ("cancelled", "response.cancelled"),
        ("failed", "response.failed"),
        ("expired", "response.failed"),
    ],
)
async def test_response_is_told_in_the_words_of_openai(
    scripts: Scripts, reason: str, told: str
) -> None:
    """A response's job is no job to the receiver, who learns which response it was."""
    metadata = {RESPONSE_FIELD: "true"}
    async with receiver() as shop, delivering(scripts):
        await ended(scripts, "a", shop.url(), reason=reason, metadata=metadata)
        await settled(scripts, "a@acme")
    [call] = shop.calls
    assert call.message.keys() == {"id", "object", "created_at", "type", "data"}
    assert (call.message["object"], call.message["type"]) == ("event", told)
    assert call.message["data"] == {"id": "resp_a"}


async def test_batch_is_told_once(scripts: Scripts) -> None:
    """Who tells of a batch's end twice, after a crash, opens one hook; its job need not exist."""
    batch_id = draw_batch_id()
    name = name_of_batch(batch_id, "acme")
    async with receiver() as shop, delivering(scripts):
        for _ in range(2):
            await scripts.control.open_webhook(
                name, "acme", shop.url(), event="batch.completed", event_of=batch_id
            )
            await settled(scripts, name)
    [call] = shop.calls
    assert call.message["type"] == "batch.completed"
    assert call.message["data"] == {"id": batch_id}


async def test_gone_receiver_is_left_alone(scripts: Scripts) -> None:
    """410 ends it: nothing is tried again."""

    async def answer(_: Call) -> web.Response:
        return web.Response(status=410)

    async with receiver(answer) as shop, delivering(scripts):
        await ended(scripts, "a", shop.url())
        hook = await settled(scripts, "a@acme")
    assert (hook.state, len(hook.tries), len(shop.calls)) == (WebhookState.GONE, 1, 1)


async def test_retry_after_is_honoured(scripts: Scripts) -> None:
    """A receiver that names a time is not called before it, whatever the back-off says."""

    async def answer(_: Call) -> web.Response:
        return web.Response(status=429, headers={"Retry-After": "120"})

    async with receiver(answer) as shop, delivering(scripts):
        await ended(scripts, "a", shop.url())
        hook = await tried(scripts, "a@acme")
    redis = raw(scripts)
    due_ms = await redis.zscore(scripts.keys.of("hooks"), "a@acme")
    assert due_ms - hook.tries[0].at_ms == 120_000


UNREASONABLE = [
    "inf", "Infinity", "1e308", "9" * 400, "nan", "-5", "-inf", "1e-300", "0", "soon", "",
    "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 01 Jan 0001 00:00:00 +2359", "Mon, 99 Jan 2024 00:00:00",
]  # fmt: skip


async def test_unreasonable_retry_after_is_clamped_and_recorded(scripts: Scripts) -> None:
    """Whatever a receiver asks for, the try is written down and the next is due by the age."""

    async def answer(call: Call) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": UNREASONABLE[int(call.path[1:])]})

    async with receiver(answer) as shop, delivering(scripts, webhook_backoff_s=60):
        for number in range(len(UNREASONABLE)):
            await ended(scripts, f"a{number}", shop.url(f"/{number}"))
        for number in range(len(UNREASONABLE)):
            hook = await tried(scripts, f"a{number}@acme")
            assert [(each.status, each.error) for each in hook.tries] == [(503, "")]
            due_ms = await raw(scripts).zscore(scripts.keys.of("hooks"), f"a{number}@acme")
            assert 30_000 <= due_ms - hook.tries[0].at_ms <= 86_400_000


async def test_try_that_breaks_in_the_service_is_recorded_and_hurts_no_other(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug at one hook counts as a failed try of it, so that it ends at its age as others do."""
    post = Courier.post

    async def breaking(self: Courier, url: str, headers: Any, body: bytes) -> Any:
        if url.endswith("/broken"):
            raise OverflowError
        return await post(self, url, headers, body)

    async def answer(_: Call) -> web.Response:
        return web.Response()

    monkeypatch.setattr(Courier, "post", breaking)
    async with receiver(answer) as shop, delivering(scripts, webhook_max_age_s=0.5):
        await ended(scripts, "a", shop.url("/broken"))
        await ended(scripts, "b", shop.url("/whole"))
        broken, whole = await settled(scripts, "a@acme"), await settled(scripts, "b@acme")
    assert (broken.state, whole.state) == (WebhookState.EXPIRED, WebhookState.DELIVERED)
    assert {each.error for each in broken.tries} == {"internal error: OverflowError"}


@pytest.mark.parametrize(
    "url",
    ["http://a..example/", f"http://{'a' * 64}.example/", "http://[::1", "http://1.2.3.4.5/",
     "http://sh op/", "shop", "http://shop:99999/", "http://shop.invalid/", "https://shop.onion./"],
)  # fmt: skip
async def test_url_that_can_never_work_is_tried_once(url: str) -> None:
    """One that an earlier release accepted is refused for good at its first try."""
    async with Courier(AddressPolicy(), 5, 4) as courier:
        answer = await courier.post(url, {}, b"{}")
    assert (answer.status, answer.is_refused) == (None, True)
    assert answer.error


async def test_back_off_doubles_and_ends_at_the_age(
    scripts: Scripts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last try is due at the set age, none later; then the hook is expired."""
    record, redis, dues = scripts.control.record_webhook_try, raw(scripts), list[float]()

    async def answer(_: Call) -> web.Response:
        return web.Response(status=500)

    async def noting(*args: Any, **named: Any) -> Any:
        state = await record(*args, **named)
        if (due_ms := await redis.zscore(scripts.keys.of("hooks"), "a@acme")) is not None:
            dues.append(due_ms)
        return state

    monkeypatch.setattr(scripts.control, "record_webhook_try", noting)
    async with receiver(answer) as shop, delivering(scripts, webhook_max_age_s=1.2):
        await ended(scripts, "a", shop.url())
        hook = await settled(scripts, "a@acme")
    last_ms = int(await redis.hget(scripts.keys.of("hook", "a@acme"), "created")) + 1200
    assert hook.state is WebhookState.EXPIRED
    assert hook.tries[-1].at_ms >= last_ms
    assert max(dues) <= last_ms
    for number, (before, after) in enumerate(pairwise(hook.tries[:-1])):
        # Half of a back-off of 20 ms that has doubled so often, in whole milliseconds.
        assert after.at_ms - before.at_ms >= 10 * 2**number - 1


async def test_redirect_keeps_body_and_signature(scripts: Scripts) -> None:
    """307 is followed with the same call; a redirect that would turn it into a GET is a failure."""

    async def answer(call: Call) -> web.Response:
        if call.path == "/old":
            return web.Response(status=307, headers={"Location": "/new"})
        if call.path == "/lost":
            return web.Response(status=302, headers={"Location": "/new"})
        return web.Response(status=200)

    async with receiver(answer) as shop, delivering(scripts):
        await ended(scripts, "a", shop.url("/old"))
        assert (await settled(scripts, "a@acme")).state is WebhookState.DELIVERED
        await ended(scripts, "b", shop.url("/lost"))
        assert (await tried(scripts, "b@acme")).tries[0].status == 302
    old, new, *_ = shop.calls
    assert (old.path, new.path) == ("/old", "/new")
    assert old.body == new.body
    assert old.headers["webhook-signature"] == new.headers["webhook-signature"]


async def test_tenant_without_a_key_is_not_called(scripts: Scripts) -> None:
    """Nothing goes out unsigned; the try says what is missing and is made again later."""
    async with receiver() as shop, delivering(scripts, webhook_keys={"other": KEY}):
        await ended(scripts, "a", shop.url())
        hook = await tried(scripts, "a@acme")
    assert hook.state is WebhookState.DUE
    assert "no signing key" in hook.tries[0].error
    assert shop.calls == []


async def test_hanging_receiver_holds_up_no_other(scripts: Scripts) -> None:
    """With every place wanted by a receiver that hangs, another's call still goes through."""
    hang = asyncio.Event()

    async def answer(_: Call) -> web.Response:
        await hang.wait()
        return web.Response(status=200)

    values = {"webhook_concurrency": 4, "webhook_timeout_s": 30}
    keys = {"acme": KEY, "other": KEY}
    async with receiver(answer) as slow, receiver() as shop:
        for number in range(8):
            await ended(scripts, f"slow-{number}", slow.url())
        await ended(scripts, "quick", shop.url(), tenant="other")
        async with delivering(scripts, webhook_keys=keys, **values):
            assert (await settled(scripts, "quick@other")).state is WebhookState.DELIVERED
            assert len(slow.calls) <= 2
            hang.set()


async def test_result_that_expired_is_told_without_its_text(scripts: Scripts) -> None:
    """A call made after the result's time still says how the job ended."""
    async with receiver() as shop:
        await ended(scripts, "a", shop.url())
        await raw(scripts).delete(scripts.keys.result("a@acme"))
        async with delivering(scripts):
            await settled(scripts, "a@acme")
    [call] = shop.calls
    assert call.message["choices"] is None
    assert call.message["finish"]["reason"] == "stop"
