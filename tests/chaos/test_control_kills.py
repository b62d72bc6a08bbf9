"""The control service is killed while webhooks are due."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from aiohttp import web
from patience import PATIENCE_S
from rides.scale import IS_SHORT
from workers.control_processes import KEY, control_process, receiver
from workers.stubs import submit

from tokenbus.producer.contract.new_job import new_job
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.scripts.completion import JobCompletion
from tokenbus.producer.scripts.control import WebhookState

if TYPE_CHECKING:
    import random

    from workers.control_processes import Call, ControlProcess, Receiver

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.scripts.control import Webhook

NUM_WEBHOOKS, NUM_KILLS = (40, 1) if IS_SHORT else (500, 10)
CONCURRENCY = 8
SETTINGS = {
    "webhook_keys": f'{{"acme":"{KEY}"}}',
    "webhook_allowed_networks": '["127.0.0.1/32"]',
    "webhook_timeout_s": 1,
    "webhook_backoff_s": 0.2,
    "webhook_concurrency": CONCURRENCY,
}


async def _open_webhooks(client: AsyncClient, url: str) -> list[str]:
    """Make webhooks due: jobs that are cancelled are told of like all others."""
    job_ids = [f"hook-{number}@acme" for number in range(NUM_WEBHOOKS)]
    completion = JobCompletion(client.scripts)
    for job_id in job_ids:
        named = job_id.partition("@")[0]
        request = JobRequest.build(id=named, prompt="x", tenant="acme", callback_url=url)
        await submit(client.scripts, new_job(request))
        await completion.cancel(job_id)
    return job_ids


async def _kill_midway(service: ControlProcess, shop: Receiver, num_more: int) -> None:
    """Kill a service after it made some calls, wherever it is by then."""
    await shop.until_called(len(shop.calls) + num_more)
    service.kill()
    await service.process.wait()


async def _hooks(client: AsyncClient, job_ids: list[str]) -> list[Webhook]:
    found = [await client.scripts.control.webhook(job_id) for job_id in job_ids]
    return [hook for hook in found if hook is not None]


async def _settled(client: AsyncClient, job_ids: list[str]) -> list[Webhook]:
    """Wait until every hook is settled."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            hooks = await _hooks(client, job_ids)
            if all(hook.state is not WebhookState.DUE for hook in hooks):
                return hooks
            await asyncio.sleep(0.2)


async def test_control_killed_while_webhooks_are_due(
    client: AsyncClient, rng: random.Random, redis_url: str
) -> None:
    """All are delivered, and none is sent again after its success was recorded."""
    pool = client.scripts.keys.pool
    recorded: set[str] = set()
    after_record: list[str] = []

    async def answer(call: Call) -> web.Response:
        if call.headers["tokenbus-job"] in recorded:
            after_record.append(call.headers["tokenbus-job"])
        await asyncio.sleep(rng.uniform(0, 0.02))
        return web.Response(status=503 if rng.random() < 0.1 else 200)

    async with receiver(answer) as shop:
        job_ids = await _open_webhooks(client, shop.url())
        for _ in range(NUM_KILLS):
            async with control_process(pool, redis_url, **SETTINGS) as service:
                await _kill_midway(service, shop, rng.randint(1, NUM_WEBHOOKS // (2 * NUM_KILLS)))
            hooks = await _hooks(client, job_ids)
            recorded |= {hook.job_id for hook in hooks if hook.state is WebhookState.DELIVERED}
        async with control_process(pool, redis_url, **SETTINGS):
            hooks = await _settled(client, job_ids)
    assert len(hooks) == NUM_WEBHOOKS
    assert {hook.state for hook in hooks} == {WebhookState.DELIVERED}
    assert after_record == []
    for hook in hooks:
        statuses = [attempt.status for attempt in hook.tries]
        assert statuses.count(200) == 1
        assert statuses[-1] == 200
    calls = Counter(call.headers["tokenbus-job"] for call in shop.calls)
    doubled = sum(calls[hook.job_id] > len(hook.tries) for hook in hooks)
    print(f"{NUM_KILLS} kills, {NUM_WEBHOOKS} webhooks, {doubled} taken twice before their record")
    # A kill leaves at most one unrecorded call per place.
    assert doubled <= NUM_KILLS * CONCURRENCY
