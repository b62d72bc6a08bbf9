"""Batches for tests: inputs, and what their outputs have to be."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from workers.stubs import until

from tokenbus.producer.stored.batch_record import ENDED, BatchRecord, BatchState
from tokenbus.producer.stored.content_store import ContentStore
from tokenbus.producer.stored.derived_ids import draw_batch_id
from tokenbus.producer.stored.stored_batches import StoredBatches
from tokenbus.producer.stored.stored_files import FileFields, FileLimits, StoredFiles
from tokenbus.worker.control.service import batch_service
from tokenbus.worker.control.settings import ControlSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient

OWNER, TENANT = "0123456789ab", "acme"


def completion_line(number: int, **fields: Any) -> dict[str, Any]:
    """Return a line whose answer is its own: the seed is the line's number."""
    body = {"model": "m", "prompt": "x", "max_tokens": 3, "seed": number} | fields
    url = "/v1/completions"
    return {"custom_id": f"line-{number}", "method": "POST", "url": url, "body": body}


@asynccontextmanager
async def batches_run(desk: BatchDesk, folder: Path | str, **values: Any) -> AsyncIterator[None]:
    """Run the batches of the desk's pool beside the test."""
    settings = ControlSettings.load(pool=desk.client.scripts.keys.pool, **values)
    task = asyncio.create_task(batch_service(desk.client, str(folder), settings).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


class BatchDesk:
    """Makes batches as a door does, and looks at them."""

    def __init__(self, client: AsyncClient, folder: str) -> None:
        redis = client.scripts.redis
        self.client = client
        self.files = StoredFiles(redis, ContentStore(folder), FileLimits())
        self.batches = StoredBatches(redis)

    async def create(self, lines: Sequence[Any], **fields: Any) -> str:
        """Make a batch of lines, bytes among them as they are, and return its id."""
        rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]

        async def chunks() -> AsyncIterator[bytes]:
            yield b"\n".join(rows)

        file = await self.files.create(OWNER, chunks(), FileFields("in.jsonl", "batch"))
        now_s = await self.batches.now_s()
        given: dict[str, Any] = {
            "endpoint": "/v1/completions",
            "completion_window": "24h",
            "expires_at": now_s + 86_400,
        } | fields
        record = BatchRecord(
            id=draw_batch_id(),
            owner=OWNER,
            tenant=TENANT,
            pool=self.client.scripts.keys.pool,
            priority=2,
            input_file_id=file.id,
            created_at=now_s,
            **given,
        )
        return (await self.batches.create(record)).id

    async def until(self, batch_id: str, num_done: int) -> None:
        """Wait until so many lines have their output."""

        async def is_there() -> bool:
            state = await self.batches.state(batch_id)
            return state.completed + state.failed >= num_done

        await until(is_there)

    async def ended(self, batch_id: str) -> BatchState:
        """Wait for the end of a batch, until nothing more is done about it."""
        pool = self.client.scripts.keys.pool

        async def is_closed() -> bool:
            return batch_id not in await self.batches.open_ids(pool, 100)

        await until(is_closed)
        state = await self.batches.state(batch_id)
        assert state.status in ENDED
        return state

    async def rows(self, file_id: str | None) -> list[dict[str, Any]]:
        """Return the rows of an output."""
        if file_id is None:
            return []
        record = await self.files.get(OWNER, file_id)
        blocks = [block async for block in self.files.read(record)]
        return [json.loads(row) for row in b"".join(blocks).splitlines()]


def names_in(*outputs: Sequence[dict[str, Any]]) -> Counter[str]:
    """Count the rows of each custom_id."""
    return Counter(row["custom_id"] for rows in outputs for row in rows)


async def num_jobs_run(client: AsyncClient, tenant: str = TENANT) -> int:
    """Count the jobs of a tenant that were completed, each as often as it was."""
    redis: Any = client.scripts.redis
    total = 0
    async for key in redis.scan_iter(f"{client.scripts.keys.of('usage')}*"):
        total += int(await redis.hget(key, f"{tenant}|jobs") or 0)
    return total
