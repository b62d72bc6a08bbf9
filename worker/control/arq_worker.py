"""arq's worker, kept alive: opened by URL, never fed a pickle, restarted when its server was away.

arq's own loop ends at the first error of its connection, and its settings know no socket with a
password. Its jobs are safe meanwhile: they are locked for a time and run again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool

from tokenbus.producer.answers import SERVER_ERRORS, answer_of
from tokenbus.producer.errors import UrlInvalid
from tokenbus.producer.server.connection import typed
from tokenbus.producer.server.limited_connection import keep_cancellations
from tokenbus.producer.server.redis_py import connection_options
from tokenbus.producer.server.url import ServerKind, ServerUrl
from tokenbus.worker.control.serializer import pack, unpack
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from arq.worker import Worker

# More calls than this wait for a connection instead of opening one.
MAX_CONNECTIONS = 32
_FIRST_PAUSE_S = 0.2
# A server that has recovered is asked within a second.
_MAX_PAUSE_S = 1.0
# A worker that lived this long had its server.
_LIVED_S = 10.0
# Cancelled jobs put themselves back into arq's queue.
_HAND_BACK_S = 5.0
# A health key that is three times as old as it may get says that no worker lives.
HEALTH_INTERVAL_S = 10


def check_arq_url(url: str) -> ServerUrl:
    """Check the URL of arq's server. Raises: UrlInvalid."""
    parsed = ServerUrl.parse(url)
    if parsed.kind is not ServerKind.REMOTE:
        raise UrlInvalid(
            f"arq cannot use {parsed}: name one server, redis://, rediss:// or unix://"
        )
    return parsed


def connect_arq(url: str, queue: str, call_timeout_s: float = 5.0) -> ArqRedis:
    """Make an arq client that reads and writes JSON; it enqueues into `queue` unless told else.

    Raises: UrlInvalid, also for what arq cannot use: a cluster, sentinels, embedded servers.
    """
    bare, given = check_arq_url(url).client_arguments()
    arguments: dict[str, Any] = connection_options() | {
        "max_connections": MAX_CONNECTIONS,
        "timeout": call_timeout_s,
        "socket_connect_timeout": call_timeout_s,
        "socket_timeout": call_timeout_s,
    }
    if "host" in given:
        arguments["socket_keepalive"] = True
    pool: Any = BlockingConnectionPool.from_url(bare, **arguments | given)
    keep_cancellations(pool)
    return ArqRedis(pool, job_serializer=pack, job_deserializer=unpack, default_queue_name=queue)


async def keep_running(
    make: Callable[[ArqRedis], Worker],
    url: str,
    queue: str,
    call_timeout_s: float,
    outage_timeout_s: float,
) -> None:
    """Run arq workers, one after the other, until cancelled.

    A server that refuses, the credentials for instance, is asked for as long as it takes once it
    has served.
    Raises: ServerUnreachable when the server stays away for `outage_timeout_s`; ServerRefused.
    """
    _forward_logs()
    pause_s, away_since, has_lived = _FIRST_PAUSE_S, None, False
    while True:
        began, failure = time.monotonic(), None
        redis = connect_arq(url, queue, call_timeout_s)
        try:
            await redis.ping()
            has_lived = True
            await _run_once(make, redis)
        except SERVER_ERRORS as error:
            answer, now = answer_of(error), time.monotonic()
            if now - began > _LIVED_S or away_since is None:
                pause_s, away_since = _FIRST_PAUSE_S, now
            is_too_long = answer.waits and now - away_since > outage_timeout_s
            if is_too_long or not (answer.waits or has_lived):
                failure = typed(error, ServerUrl.parse(url), round(now - away_since, 1))
            get_logger().warning(
                "arq.interrupted", code=answer.code, reason=answer.text, hint=answer.hint
            )
        finally:
            await redis.aclose(close_connection_pool=True)
        if failure is not None:
            raise failure
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)


async def _run_once(make: Callable[[ArqRedis], Worker], redis: ArqRedis) -> None:
    """Run one worker to its end; what it was doing goes back to arq's queue."""
    worker = make(redis)
    try:
        await worker.async_run()
    finally:
        for task in worker.tasks.values():
            task.cancel()
        if worker.tasks:
            await asyncio.wait(worker.tasks.values(), timeout=_HAND_BACK_S)


class _Forward(logging.Handler):
    """Hands what arq has to say, warnings and worse, to our log: one form for all lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record."""
        log = get_logger()
        write = log.error if record.levelno >= logging.ERROR else log.warning
        write("arq.reported", message=record.getMessage(), error=_error_of(record))


def _error_of(record: logging.LogRecord) -> str | None:
    error = record.exc_info[1] if record.exc_info else None
    return None if error is None else f"{type(error).__name__}: {error}"


def _forward_logs() -> None:
    """Route arq's warnings to our log. Below them it prints arguments, which are prompts."""
    logger = logging.getLogger("arq")
    if not any(isinstance(handler, _Forward) for handler in logger.handlers):
        logger.addHandler(_Forward())
    logger.setLevel(logging.WARNING)
    logger.propagate = False
