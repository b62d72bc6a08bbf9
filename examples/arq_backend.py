"""A web backend on arq whose texts come from tokenbus.

In three terminals:

    tokenbus worker --redis embedded:///tmp/bus
    tokenbus control adapter --redis embedded:///tmp/bus
    TOKENBUS_REDIS_URL=embedded:///tmp/bus python examples/arq_backend.py

It enqueues as arq does, follows the tokens of one job, waits for two and aborts a third.
"""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING

from tokenbus.producer import AsyncClient
from tokenbus.producer.errors import JobUnknown
from tokenbus.worker.control.backend import connect

if TYPE_CHECKING:
    from arq.connections import ArqRedis
    from arq.jobs import Job

TIMEOUT_S = 120


async def enqueue(redis: ArqRedis, job_id: str, prompt: str, max_tokens: int) -> Job:
    """Enqueue one text; the fields are those of a tokenbus request."""
    job = await redis.enqueue_job("generate", prompt=prompt, max_tokens=max_tokens, _job_id=job_id)
    if job is None:
        raise ValueError(f"arq already has a job {job_id}")
    return job


async def follow(client: AsyncClient, job_id: str) -> None:
    """Print a job's text while it grows: the id is arq's own."""
    while True:
        try:
            async for event in client.stream(job_id):
                print(event.text, end="", flush=True)
        except JobUnknown:  # the adapter has not taken it up yet
            await asyncio.sleep(0.05)
        else:
            print()
            return


async def main() -> None:
    """Run the example."""
    async with await AsyncClient.connect() as client:
        redis = connect(client.effective_url)
        run = uuid.uuid4().hex[:8]
        tent = await enqueue(redis, f"{run}-tent", "Two sentences about a tent for two:", 48)
        lamp = await enqueue(redis, f"{run}-lamp", "Two sentences about a storm lantern:", 48)
        novel = await enqueue(redis, f"{run}-novel", "A novel about rain:", 400)
        async with asyncio.timeout(TIMEOUT_S):
            await follow(client, tent.job_id)
            for job in (tent, lamp):
                answer = await job.result(poll_delay=0.05)
                print(job.job_id, answer["reason"], answer["usage"])
            was_aborted = await novel.abort(poll_delay=0.05)
            print(novel.job_id, "aborted" if was_aborted else "was done before")
        await redis.aclose(close_connection_pool=True)


if __name__ == "__main__":
    asyncio.run(main())
