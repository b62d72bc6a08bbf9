"""What a publisher says of a job is on the channel of the client that submitted it, too."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
from patience import PATIENCE_S
from servers.fixtures import pool, redis_url, server
from workers.publisher_bench import JOB_ID, KEY, running_publisher, step_of_job, take_over
from workers.steps import step
from workers.stubs import raw

from tokenbus.engine.types import FinishReason
from tokenbus.producer.contract.keys import LOG_KEYS
from tokenbus.worker.messages.publishing import Committed, OpenGate, Progress

if TYPE_CHECKING:
    from tokenbus.worker.messages.publishing import TakeOver

__all__ = ["pool", "redis_url", "server"]

CLIENT = "c" * 22
OTHER_KEY, OTHER_ID = KEY + 1, "s0-other"
LONG_KEY, LONG_ID = KEY + 2, "s0-long"


def heard(order: TakeOver) -> TakeOver:
    """Return an order for a job whose client listens."""
    return msgspec.structs.replace(order, listen=CLIENT)


async def test_client_hears_all_of_its_jobs_and_nothing_of_others(
    redis_url: str, pool: str
) -> None:
    """First token, appends one by one and by slices, end, and whole answers; order is kept."""
    async with running_publisher(redis_url, pool) as bench:
        publisher, scripts = bench.publisher, bench.scripts
        client = f"{scripts.keys.log_prefix(0)}{LOG_KEYS['cli']}{CLIENT}"
        own = [scripts.keys.channel(job_id) for job_id in (JOB_ID, LONG_ID, OTHER_ID)]
        listener = raw(scripts).pubsub()
        await listener.subscribe(client, *own)
        for _ in range(4):
            await listener.get_message(timeout=PATIENCE_S)
        publisher.obey(OpenGate(0, time.monotonic()))
        publisher.obey(heard(take_over(is_ahead=True)))
        publisher.obey(heard(take_over(LONG_KEY, LONG_ID, is_ahead=True)))
        publisher.obey(take_over(OTHER_KEY, OTHER_ID, is_ahead=True))
        every = (LONG_KEY, OTHER_KEY)
        publisher.obey(step_of_job(300, end=FinishReason.LENGTH))
        publisher.obey(step(tokens=dict.fromkeys(every, (301,)), ends={}))
        await bench.first(Committed)
        await bench.first(Progress)
        publisher.obey(step(tokens=dict.fromkeys(every, (302,)), ends={}))
        await bench.first(Progress)
        ends = dict.fromkeys(every, FinishReason.LENGTH)
        publisher.obey(step(tokens=dict.fromkeys(every, (303, 304)), ends=ends))
        for _ in every:
            await bench.first(Committed)
        told: dict[str, list[bytes]] = {name: [] for name in (client, *own)}
        while not all(any(b'"finish"' in text for text in told[channel]) for channel in own) or len(
            told[client]
        ) < len(told[own[0]]) + len(told[own[1]]):
            message = await listener.get_message(timeout=PATIENCE_S)
            assert message is not None
            told[message["channel"].decode()].append(message["data"])
        await listener.aclose()
    assert [text for text in told[client] if text in told[own[0]]] == told[own[0]]
    assert [text for text in told[client] if text in told[own[1]]] == told[own[1]]
    assert len(told[client]) == len(told[own[0]]) + len(told[own[1]])
