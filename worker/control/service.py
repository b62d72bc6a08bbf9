"""`tokenbus control`: the service (crons, webhooks), the adapter for arq, and a health check.

Several of each may run at once, on any machine; none of them keeps anything that the server does
not have.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from arq.constants import health_check_key_suffix

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.scripts.rights import UserRole, check_rights
from tokenbus.producer.server.connection import retrying
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.settings import ClientSettings
from tokenbus.producer.stored.content_store import ContentStore
from tokenbus.producer.stored.stored_batches import StoredBatches
from tokenbus.producer.stored.stored_files import FileLimits, StoredFiles
from tokenbus.producer.stored.stored_responses import StoredResponses
from tokenbus.producer.wait_notice import waiting_told
from tokenbus.worker import logs
from tokenbus.worker.control.adapter import Adapter
from tokenbus.worker.control.arq_worker import check_arq_url, connect_arq, keep_running
from tokenbus.worker.control.batches.batch_service import BatchService
from tokenbus.worker.control.batches.batch_tools import BatchTools
from tokenbus.worker.control.batches.stored_upkeep import store_results, sweep_files
from tokenbus.worker.control.crons import Crons, chores_of
from tokenbus.worker.control.housekeeping import Housekeeping
from tokenbus.worker.control.metrics import ControlMetrics
from tokenbus.worker.control.telemetry.control_life import ControlLife
from tokenbus.worker.control.telemetry.pool_teller import PoolTeller
from tokenbus.worker.control.timetable import Timetable
from tokenbus.worker.control.webhooks.addresses import AddressPolicy
from tokenbus.worker.control.webhooks.courier import Courier
from tokenbus.worker.control.webhooks.delivery import Webhooks
from tokenbus.worker.trace_start import start_traces

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tokenbus.worker.control.settings import ControlSettings
    from tokenbus.worker.control.telemetry.exporter import ControlExporter

Role = Literal["service", "adapter", "check"]


class _Stopped(Exception):
    """Ends a service that was asked to stop."""


def run_control(role: Role, settings: ControlSettings) -> int:
    """Run in the foreground until told to stop; return 0 after an orderly end.

    The role `check` returns at once: 0 if a service of the pool lives, else 1.
    Raises: ServerError, SettingsInvalid or ControlError if it could not start or go on.
    """
    ServerUrl.parse(settings.redis_url).refuse_private("control")
    if settings.arq_redis_url is not None:
        check_arq_url(settings.arq_redis_url)
    logs.configure(settings.log_level, settings.log_format)
    if role == "check":
        return asyncio.run(_check(settings))
    logs.take_library_logs()
    start_traces(settings, "control")
    run = serve if role == "service" else adapt
    asyncio.run(_until_stopped(run(settings)))
    return 0


async def serve(settings: ControlSettings) -> None:
    """Run the crons and the webhooks of one pool until cancelled."""
    table = Timetable.load(settings.crons)
    keys = settings.signing_keys()
    policy = AddressPolicy(settings.webhook_allowed_networks)
    # Names are looked up in threads; a few that hang must not keep the others waiting.
    asyncio.get_running_loop().set_default_executor(
        ThreadPoolExecutor(settings.webhook_concurrency, "look-up")
    )
    async with contextlib.AsyncExitStack() as stack:
        life, metrics = ControlLife(), ControlMetrics()
        exporter = await _telemetry(stack, settings, metrics, life)
        client = await stack.enter_async_context(await _connect(settings))
        watch = PoolTeller(client.scripts, assumed=settings.assumed)
        if exporter is not None:
            exporter.watch = watch
        courier = await stack.enter_async_context(
            Courier(policy, settings.webhook_timeout_s, settings.webhook_concurrency)
        )
        webhooks = Webhooks(client.scripts, courier, keys=keys, settings=settings, metrics=metrics)
        folder = Path() if settings.crons is None else settings.crons.parent
        chores = chores_of(Housekeeping(client, settings))
        crons = Crons(client, chores, table=table, folder=folder, metrics=metrics)
        logs.get_logger().info("control.started", pool=settings.pool, crons=len(table.cron))
        async with asyncio.TaskGroup() as tasks:
            life.works()
            tasks.create_task(life.run())
            tasks.create_task(watch.run())
            tasks.create_task(webhooks.run())
            responses = StoredResponses(
                client.scripts.redis,
                ttl_s=settings.gateway_response_ttl_s,
                owner_bytes=settings.gateway_response_bytes,
            )
            tasks.create_task(store_results(responses, client.scripts))
            if settings.files_url is not None:
                batches = batch_service(client, settings.files_url, settings)
                tasks.create_task(batches.run())
                tasks.create_task(sweep_files(batches.files, client.scripts))
            tasks.create_task(
                keep_running(
                    crons.make_worker,
                    settings.arq_redis_url or client.effective_url,
                    crons.queue,
                    settings.call_timeout_s,
                    settings.outage_timeout_s,
                )
            )


def batch_service(client: AsyncClient, files_url: str, settings: ControlSettings) -> BatchService:
    """Return what runs the batches of a client's pool. Raises: StoreUnusable."""
    redis = client.scripts.redis
    tools = BatchTools(
        client=client,
        batches=StoredBatches(redis),
        files=StoredFiles(redis, ContentStore(files_url), FileLimits()),
        window=settings.batch_window,
        max_tokens={
            "/v1/chat/completions": settings.gateway_chat_tokens,
            "/v1/responses": settings.gateway_chat_tokens,
            "/v1/completions": settings.gateway_completion_tokens,
        },
    )
    return BatchService(tools, settings.pool)


async def adapt(settings: ControlSettings) -> None:
    """Run arq's `generate` jobs on one pool until cancelled."""
    async with contextlib.AsyncExitStack() as stack:
        life, metrics = ControlLife(), ControlMetrics()
        await _telemetry(stack, settings, metrics, life)
        client = await stack.enter_async_context(await _connect(settings))
        logs.get_logger().info("adapter.started", pool=settings.pool, queue=settings.queue)
        async with asyncio.TaskGroup() as tasks:
            life.works()
            tasks.create_task(life.run())
            tasks.create_task(Adapter(client, settings, metrics).run())


async def _telemetry(
    stack: contextlib.AsyncExitStack,
    settings: ControlSettings,
    metrics: ControlMetrics,
    life: ControlLife,
) -> ControlExporter | None:
    """Answer scrapes and probes if a port is set; only then their library is imported."""
    if settings.metrics_port is None:
        return None
    from tokenbus.worker.control.telemetry.exporter import ControlExporter
    from tokenbus.worker.telemetry.telemetry_server import telemetry_served

    exporter = ControlExporter(metrics, settings, life)
    await stack.enter_async_context(
        telemetry_served(exporter, life, settings.metrics_host, settings.metrics_port)
    )
    return exporter


async def _connect(settings: ControlSettings) -> AsyncClient:
    """Connect as a client does, and check the rights of a control service."""
    url, trying_s = ServerUrl.parse(settings.redis_url), settings.connect_timeout_s
    reason = f"no server at {url} yet, trying for {trying_s:g} s"
    with waiting_told(lambda: logs.get_logger().warning("server.awaited", reason=reason)):
        client = await AsyncClient.connect(
            settings.redis_url,
            settings.pool,
            ClientSettings(
                retry_for_s=trying_s,
                call_timeout_s=settings.call_timeout_s,
                result_ttl_s=settings.result_ttl_s,
                log_ttl_s=settings.log_ttl_s,
            ),
        )
    redis, keys = client.scripts.redis, client.scripts.keys
    try:
        await retrying(
            lambda: check_rights(redis, keys, UserRole.CONTROL, shown_url=str(client.url)),
            client.url,
            settings.connect_timeout_s,
        )
    except BaseException:
        await client.close()
        raise
    return client


async def _until_stopped(work: Coroutine[None, None, None]) -> None:
    """Run until SIGTERM or SIGINT. Raises: the first error alone, whatever else it took down."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def until_asked() -> None:
        await stop.wait()
        raise _Stopped

    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(work)
            tasks.create_task(until_asked())
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, _Stopped):
            raise error from group
        logs.get_logger().info("control.stopped")


async def _check(settings: ControlSettings) -> int:
    """Look for the sign of life of a service."""
    async with await _connect(settings) as client:
        url = settings.arq_redis_url or client.effective_url
        queue = Crons(client, [], table=Timetable(), folder=Path()).queue
        redis = connect_arq(url, queue, settings.call_timeout_s)
        try:
            lives = bool(await redis.exists(queue + health_check_key_suffix))
        finally:
            await redis.aclose(close_connection_pool=True)
    print("a control service lives" if lives else "no control service lives")
    return 0 if lives else 1
