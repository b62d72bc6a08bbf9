"""Checks of the server: reach, version, eviction, persistence, memory, rights, latency, clock."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.client.pool_figures import read_figures
from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.errors import ServerError, ServerUnsuitable
from tokenbus.producer.scripts.rights import UserRole, acl_line, missing_rights
from tokenbus.producer.server.connection import open_server
from tokenbus.producer.server.url import ServerUrl
from tokenbus.worker.doctor.finding import failed, ok, skipped, warning

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.client.worker_status import WorkerStatus
    from tokenbus.producer.server.connection import Server
    from tokenbus.worker.doctor.finding import Finding

RETRY_FOR_S = 2.0
_NUM_PINGS = 20
# A round trip stands between every first token and its reader.
_SLOW_MS = 5.0
# API keys count by the wall clock of the gateways, and receivers of webhooks check it.
_CLOCK_OFF_S = 2.0
_FULL_SHARE = 0.8


async def server_checks(url: str, pool: str) -> AsyncIterator[Finding]:
    """Look at a server and at the pool on it."""
    parsed = ServerUrl.parse(url)
    try:
        server = await open_server(url, retry_for_s=RETRY_FOR_S)
    except ServerUnsuitable as error:
        yield failed("server", str(error), "see the sentence above")
        return
    except ServerError as error:
        advice = "is it running, and is its URL right (TOKENBUS_REDIS_URL, --redis)?"
        yield failed("server", str(error), getattr(error, "hint", "") or advice)
        return
    try:
        async for finding in _opened(server, parsed, Keys(pool)):
            yield finding
    finally:
        await server.close()


async def _opened(server: Server, url: ServerUrl, keys: Keys) -> AsyncIterator[Finding]:
    redis: Any = server.redis
    info = await _info(redis)
    for check in (_version, _eviction, _memory):
        yield check(info, url)
    yield await _persistence(redis, info)
    yield await _rights(redis, keys)
    yield await _latency(redis)
    yield await _clock(redis)
    yield await _pool(redis, keys)


async def _info(redis: Any) -> dict[str, Any]:
    """Return what the server tells of itself; nothing where its user may not ask."""
    try:
        told = await redis.info()
    except (*SERVER_ERRORS, RedisError):
        return {}
    return told if isinstance(told, dict) else {}


def _version(info: dict[str, Any], url: ServerUrl) -> Finding:
    name = "Valkey" if "valkey_version" in info else "Redis"
    number = info.get("valkey_version") or info.get("redis_version")
    if number is None:
        return skipped("server", f"{url} answers; its user may not ask for INFO")
    return ok("server", f"{url} answers, {name} {number}")


def _eviction(info: dict[str, Any], url: ServerUrl) -> Finding:
    policy = info.get("maxmemory_policy")
    if policy is None:
        return skipped("eviction", "the server does not tell")
    if policy == "noeviction":
        return ok("eviction", "noeviction: nothing that was accepted is thrown away")
    advice = "CONFIG SET maxmemory-policy noeviction, and in its configuration file"
    if url.allows_eviction:
        return warning("eviction", f"{policy}, which ?allow_eviction=true takes", advice)
    return warning("eviction", f"{policy}, with no bound of memory yet", advice)


def _memory(info: dict[str, Any], url: ServerUrl) -> Finding:
    del url
    used, bound = info.get("used_memory"), info.get("maxmemory")
    if used is None:
        return skipped("memory", "the server does not tell")
    if not bound:
        return warning(
            "memory",
            f"{used / 2**20:.0f} MiB in use, without a bound",
            "set maxmemory below the machine's, so that submits are refused before the system"
            " kills the server",
        )
    found = f"{used / 2**20:.0f} of {bound / 2**20:.0f} MiB in use"
    if used > _FULL_SHARE * bound:
        advice = "raise maxmemory, or lower TOKENBUS_RESULT_BYTES and TOKENBUS_MAX_POOL_TOKENS"
        return warning("memory", found, advice)
    return ok("memory", found)


async def _persistence(redis: Any, info: dict[str, Any]) -> Finding:
    is_on = info.get("aof_enabled")
    if is_on is None:
        return skipped("persistence", "the server does not tell")
    if not is_on:
        return warning(
            "persistence",
            "no append-only file: the jobs that were accepted die with the server",
            "CONFIG SET appendonly yes, and in its configuration file",
        )
    if info.get("aof_last_write_status", "ok") != "ok":
        return failed(
            "persistence", "the last write of the append-only file failed", "is its disk full?"
        )
    try:
        told = await redis.config_get("appendfsync")
    except (*SERVER_ERRORS, RedisError):
        return ok("persistence", "append-only file")
    when = {_text(name): _text(value) for name, value in told.items()}.get("appendfsync", "")
    lost = {"always": "nothing", "everysec": "the last second", "no": "up to half a minute"}
    found = f"append-only file, appendfsync {when}: a power cut takes {lost.get(when, 'something')}"
    if when == "no":
        return warning("persistence", found, "CONFIG SET appendfsync everysec")
    return ok("persistence", found)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


async def _rights(redis: Any, keys: Keys) -> Finding:
    lacks = {role: await missing_rights(redis, keys, role) for role in UserRole}
    allowed = [role.value for role, missing in lacks.items() if not missing]
    if len(allowed) == len(lacks):
        return ok("rights", f"this user may do all that pool {keys.pool} needs")
    lacking = next(role for role in (UserRole.WORKER, *lacks) if lacks[role])
    found = f"this user may act as {', '.join(allowed) or 'nothing'} of pool {keys.pool}"
    found += f"; as {lacking.value} it lacks {', '.join(lacks[lacking][:6])}"
    advice = f"for that role: {acl_line(lacking, keys.pool, user='USER')}"
    return warning("rights", found, advice) if allowed else failed("rights", found, advice)


async def _latency(redis: Any) -> Finding:
    took_ms = []
    for _ in range(_NUM_PINGS):
        began_at = time.perf_counter()
        await redis.time()
        took_ms.append(1e3 * (time.perf_counter() - began_at))
    median, worst = statistics.median(took_ms), max(took_ms)
    found = f"{median:.2f} ms there and back, {worst:.2f} ms at worst, of {_NUM_PINGS}"
    if median > _SLOW_MS:
        advice = "put workers, gateways and server into one zone: each first token waits for it"
        return warning("latency", found, advice)
    return ok("latency", found)


async def _clock(redis: Any) -> Finding:
    before = time.time()
    seconds, micros = await redis.time()
    there = int(seconds) + int(micros) / 1e6
    # The answer was made at some moment of the call, however long that took.
    off = min(max(there, before), time.time()) - there
    found = f"this machine is {abs(off):.2f} s {'ahead of' if off > 0 else 'behind'} the server"
    if abs(off) > _CLOCK_OFF_S:
        advice = "set both clocks by NTP: limits of API keys and signatures go by the wall clock"
        return warning("clock", found, advice)
    return ok("clock", found)


async def _pool(redis: Any, keys: Keys) -> Finding:
    try:
        figures = await read_figures(redis, keys)
    except (*SERVER_ERRORS, RedisError) as error:
        return skipped("pool", f"its figures cannot be read: {answer_of(error).told}")
    workers = ", ".join(f"{each.name} {_at(each)}" for each in figures.workers[:8])
    status = figures.status
    found = f"{keys.pool}: {status.waiting_jobs} jobs wait, {status.held_jobs} run"
    if status.paused_for_s is not None:
        return warning("pool", f"{found}; it is paused", "tokenbus resume")
    if not figures.workers:
        text = f"{found}; no worker lives"
        return warning("pool", text, "tokenbus worker") if status.waiting_jobs else ok("pool", text)
    return ok("pool", f"{found}; {workers}")


def _at(worker: WorkerStatus) -> str:
    return f"{worker.phase.value} ({worker.model or 'no model yet'})"


def run_server_checks(url: str, pool: str) -> list[Finding]:
    """Look at a server; return what was found."""

    async def run() -> list[Finding]:
        return [finding async for finding in server_checks(url, pool)]

    return asyncio.run(run())
