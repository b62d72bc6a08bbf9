"""Construction of publishers: how many processes a worker gets, and their start."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from tokenbus.engine.text.byte_table import byte_table
from tokenbus.worker.messages.publishing import Configure
from tokenbus.worker.publishing.links import LocalLink, ProcessLink
from tokenbus.worker.publishing.publisher import Publisher
from tokenbus.worker.publishing.publisher_pool import PublisherPool
from tokenbus.worker.publishing.reports import ReportReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokenbus.producer.server.connection import Server
    from tokenbus.worker.held.pool_member import PoolMember
    from tokenbus.worker.messages.engine import EngineReady
    from tokenbus.worker.publishing.reports import JobEvents
    from tokenbus.worker.settings import WorkerSettings

# On fewer cores another process takes from the engine what it saves the worker.
_MIN_CORES = 3
# Cores per publisher process: at the start, and at the most where the rate asks for more. Two bring
# the middle of a step later to its readers than one that keeps up, for both ask the server at once.
_CORES_AT_START = 16
_CORES_AT_MOST = 4


def num_processes(setting: str | int, num_cores: int) -> tuple[int, int]:
    """Return how many publisher processes there are at the start, and at the most."""
    if isinstance(setting, int):
        return setting, setting
    if num_cores < _MIN_CORES:
        return 0, 0
    return max(1, num_cores // _CORES_AT_START), max(1, num_cores // _CORES_AT_MOST)


def usable_cores() -> int:
    """Count the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


async def start_publishers(
    member: PoolMember,
    server: Server,
    events: JobEvents,
    *,
    tokenizer: PreTrainedTokenizerBase,
    ready: EngineReady,
) -> PublisherPool:
    """Make the publishers of a worker; those in processes of their own take orders already.

    Raises: PublisherDied.
    """
    settings, session = member.settings, member.session
    receive = ReportReader(session, member.held_jobs, events).receive
    num_first, num_most = num_processes(settings.publishers, usable_cores())
    if num_first == 0:
        publisher = Publisher(
            session=session,
            redis=server.redis,
            scripts=member.scripts,
            tokenizer=tokenizer,
            worker=member.worker,
            emit=receive,
        )
        return PublisherPool(session, [LocalLink(publisher)])
    configure = await _configure(member.settings, server, member.worker, tokenizer, ready)
    links = [ProcessLink(configure, receive) for _ in range(num_first)]
    publishers = PublisherPool(
        session, links, make_link=lambda: ProcessLink(configure, receive), max_links=num_most
    )
    try:
        async with asyncio.TaskGroup() as tasks:
            for publisher_link in links:
                tasks.create_task(publisher_link.start())
    except BaseException:
        await publishers.stop()
        raise
    return publishers


async def _configure(
    settings: WorkerSettings,
    server: Server,
    worker: str,
    tokenizer: PreTrainedTokenizerBase,
    ready: EngineReady,
) -> Configure:
    """Return the first order to a publisher process: where it writes, and how it makes text."""
    vocab_size = ready.limits.vocab_size
    table = byte_table(tokenizer)
    return Configure(
        redis_url=server.effective_url,
        pool=settings.pool,
        worker=worker,
        call_timeout_s=settings.call_timeout_s,
        lease_ttl_s=settings.lease_ttl_s,
        vocab_size=vocab_size,
        tokenizer_folder=ready.tokenizer_folder,
        token_bytes=await asyncio.to_thread(table.dump, vocab_size) if table else None,
        strips_first_space=table is not None and table.strips_first_space,
        log_level=settings.log_level,
        special_texts=dict(table.special_texts) if table else {},
    )
