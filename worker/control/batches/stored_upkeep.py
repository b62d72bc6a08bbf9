"""Upkeep of what is stored: results of responses that nobody read, and bytes that nobody names."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.stored import stored_keys
from tokenbus.producer.stored.batch_record import ENDED
from tokenbus.producer.stored.stored_files import LEFT_AFTER_S
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.stored.stored_files import StoredFiles
    from tokenbus.producer.stored.stored_responses import StoredResponses

# Far below the time for which a pool keeps the results of its jobs.
STORE_S = 5.0
SWEEP_S = 3600.0


async def store_results(responses: StoredResponses, scripts: Scripts) -> None:
    """Keep the results of responses for ever, as their jobs end."""

    async def store() -> None:
        num_stored = await responses.store_ended_results(scripts)
        if num_stored:
            get_logger().info("responses.settled", responses=num_stored)

    await _repeat(store, STORE_S, "responses.unsettled")


async def sweep_files(files: StoredFiles, scripts: Scripts) -> None:
    """Remove for ever, once an hour, what has expired or was left behind."""

    async def sweep() -> None:
        num_removed = await files.sweep() + await _sweep_parts(files, scripts)
        if num_removed:
            get_logger().info("files.swept", files=num_removed)

    await _repeat(sweep, SWEEP_S, "files.unswept")


async def _sweep_parts(files: StoredFiles, scripts: Scripts) -> int:
    """Remove parts of outputs whose batches have ended or are forgotten; count them."""
    num_removed = 0
    for name in await files.contents.older_than(LEFT_AFTER_S):
        kind, _, rest = name.partition("/")
        batch_id = rest.partition("/")[0]
        if kind != "parts" or not batch_id:
            continue
        key = stored_keys.batch(batch_id)
        status = await scripts.redis.hget(key, "status")  # type: ignore[misc]  # is awaitable
        if status is None or status.decode() in {each.value for each in ENDED}:
            await files.contents.remove(name)
            num_removed += 1
    return num_removed


async def _repeat(work: Callable[[], Awaitable[None]], pause_s: float, event: str) -> None:
    told = ""
    while True:
        try:
            await work()
            told = ""
        except Exception as error:
            # The boundary of a chore: a place for files raises what its own library has.
            is_servers = isinstance(error, SERVER_ERRORS)
            reason = answer_of(error).told if is_servers else f"{type(error).__name__}: {error}"
            if reason != told:
                get_logger().warning(event, reason=reason)
            told = reason
        await asyncio.sleep(pause_s)
