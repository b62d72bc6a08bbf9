"""Connections to a server: opened with back-off, checked once, described without a password."""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis

from tokenbus.producer.answers import SERVER_ERRORS, ServerAnswer, answer_of, without_arguments
from tokenbus.producer.errors import (
    ServerError,
    ServerRefused,
    ServerUnreachable,
    ServerUnsuitable,
)
from tokenbus.producer.server.cluster import NUM_SHARDS, make_cluster
from tokenbus.producer.server.direct_connection import DirectConnection
from tokenbus.producer.server.embedded import EmbeddedServer, join_shared, start_private
from tokenbus.producer.server.redis_py import connection_options
from tokenbus.producer.server.sentinels import behind_sentinels, leave_deposed
from tokenbus.producer.server.tls_files import check_tls_files
from tokenbus.producer.server.url import SentinelUrl, ServerKind, ServerUrl

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeVar

    T = TypeVar("T")

MIN_VERSION = (7, 0)
FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 1.0


def typed(error: BaseException, url: ServerUrl, waited_s: float = 0.0) -> ServerError:
    """Return our typed error for what a call on the server raised.

    Its cause is redis-py's error without the arguments of the call; raise it outside of the
    handler, or the error itself would hang on to it.
    """
    answer = answer_of(error)
    made: ServerError
    if not answer.waits:
        text = f"the server at {url} refuses: {answer.told}"
        made = ServerRefused(text, code=answer.code, hint=answer.hint)
    elif answer.says_nothing:
        text = f"no server at {url} after {waited_s:g} s of trying: {_reason(answer, url)}"
        made = ServerUnreachable(text, code=answer.code, hint=answer.hint)
    else:
        text = f"the server at {url} took no call for {waited_s:g} s: {answer.told}"
        made = ServerUnreachable(text, code=answer.code, hint=answer.hint)
    made.__cause__ = without_arguments(error)
    return made


def _reason(answer: ServerAnswer, url: ServerUrl) -> str:
    hint = answer.hint
    if url.is_tls and answer.code == "TIMEOUT":
        hint = "a server without TLS lets rediss:// wait; is it redis://?"
    elif "closed by server" in answer.text and not url.is_tls:
        hint = "a server with TLS hangs up on redis://; is it rediss://?"
    return f"{answer.text}; {hint}" if hint else answer.text


async def retrying(call: Callable[[], Awaitable[T]], url: ServerUrl, retry_for_s: float) -> T:
    """Repeat a call that is safe to repeat, with back-off, while the server does not take it.

    A password that lies in a file may be about to change, so a refusal of it is waited out too.
    Raises: ServerUnreachable after `retry_for_s`; ServerRefused; what is no answer of a server.
    """
    deadline = time.monotonic() + retry_for_s
    pause_s = FIRST_PAUSE_S
    while True:
        try:
            return await call()
        except SERVER_ERRORS as error:
            answer = answer_of(error)
            may_pass = answer.waits or (answer.is_of_credentials and url.rereads_password)
            failure = typed(error, url, retry_for_s)
        if not may_pass or time.monotonic() + pause_s > deadline:
            # Not inside the handler: no cause of it may quote a call.
            raise failure
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))
        pause_s = min(2 * pause_s, MAX_PAUSE_S)


async def asked(call: Callable[[], Awaitable[T]], url: ServerUrl) -> T:
    """Make a call once that must not be repeated blindly. Raises: ServerError."""
    return await retrying(call, url, 0.0)


@dataclass(slots=True)
class Server:
    """An opened and checked server; `redis` is its client, `close` lets both go.

    `direct` makes single calls of that client.
    """

    url: ServerUrl
    redis: Redis
    _effective_url: str = field(repr=False)
    _embedded: EmbeddedServer | None = None
    direct: DirectConnection = field(init=False)

    def __post_init__(self) -> None:
        """Connect at the first call."""
        self.direct = DirectConnection(self.redis)

    @property
    def effective_url(self) -> str:
        """Return the URL other processes connect to: the socket of an embedded server."""
        return self._effective_url

    @property
    def num_shards(self) -> int:
        """Return over how many hash slots the token logs of a pool are spread."""
        return NUM_SHARDS if self.url.kind is ServerKind.CLUSTER else 1

    async def close(self) -> None:
        """Close the connections and let an embedded server go."""
        await self.direct.close()
        await self.redis.aclose()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.close)


def make_redis(url: str, call_timeout_s: float = 5.0, **options: Any) -> Redis:
    """Make a client that reads bytes and repeats nothing by itself; the URL's options go first.

    Raises: UrlInvalid.
    """
    parsed = ServerUrl.parse(url)
    if parsed.kind is ServerKind.SENTINEL:
        return behind_sentinels(SentinelUrl.parse(parsed.text), call_timeout_s, options)
    bare, given = parsed.client_arguments()
    arguments = {"socket_connect_timeout": call_timeout_s} | options | given
    if parsed.kind is ServerKind.CLUSTER:
        cluster: Any = make_cluster(bare, **arguments)
        made: Redis = cluster
        return made
    if "host" in given:
        arguments.setdefault("socket_keepalive", True)
    redis: Redis = Redis.from_url(bare, **connection_options() | arguments)
    leave_deposed(redis.connection_pool)
    return redis


async def open_server(
    url: str, *, retry_for_s: float = 15.0, call_timeout_s: float = 5.0, **options: Any
) -> Server:
    """Open the server of a URL, starting an embedded one if need be, and check that it will do.

    Further options go to redis-py's client.
    Raises: UrlInvalid, EmbeddedUnavailable, ServerUnreachable, ServerUnsuitable.
    """
    parsed = ServerUrl.parse(url)
    check_tls_files(parsed)
    embedded: EmbeddedServer | None = None
    if parsed.kind is ServerKind.PRIVATE:
        embedded = await asyncio.to_thread(start_private)
    elif parsed.path is not None:
        embedded = await asyncio.to_thread(join_shared, parsed.path)
    effective_url = url if embedded is None else embedded.url
    server = Server(
        parsed, make_redis(effective_url, call_timeout_s, **options), effective_url, embedded
    )
    try:
        await retrying(lambda: _check(server, call_timeout_s), parsed, retry_for_s)
    except BaseException:
        await server.close()
        raise
    return server


async def _check(server: Server, call_timeout_s: float) -> None:
    """Check version, kind and eviction policy. Raises: ServerUnsuitable with one sentence."""
    async with asyncio.timeout(call_timeout_s):
        found = await _look(server)
    version = re.match(r"([0-9]+)\.([0-9]+)", found.version)
    if version is not None and (int(version[1]), int(version[2])) < MIN_VERSION:
        raise ServerUnsuitable(
            f"the server at {server.url} is version {found.version};"
            " Redis 7.0 or Valkey 7.2 is the oldest that will do"
        )
    if found.mode == "cluster" and server.url.kind is not ServerKind.CLUSTER:
        raise ServerUnsuitable(
            f"the server at {server.url} is a node of a cluster; write redis+cluster://host:port"
        )
    if found.mode == "sentinel":
        raise ServerUnsuitable(
            f"the server at {server.url} is a sentinel; write redis+sentinel://host:port/master"
        )
    if found.may_evict and not server.url.allows_eviction:
        raise ServerUnsuitable(
            f"the server at {server.url} may evict jobs (maxmemory-policy {found.policy});"
            " set maxmemory-policy noeviction, or maxmemory 0, or take the loss of jobs with"
            " ?allow_eviction=true in its URL"
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """What a server tells of itself; each is left out where the user may not ask."""

    version: str = ""
    # `standalone`, `cluster` or `sentinel`.
    mode: str = ""
    policy: str = "noeviction"
    max_bytes: int | None = None

    @property
    def may_evict(self) -> bool:
        """Tell whether the server throws keys away when its memory is full, which has an end."""
        return self.policy != "noeviction" and self.max_bytes != 0


async def _look(server: Server) -> _Found:
    """Ask with INFO; a user who may not is told less by HELLO, or nothing.

    Raises: what the server answers but that the user may not ask.
    """
    try:
        info = await server.redis.info()
    except SERVER_ERRORS as error:
        if answer_of(error).code not in ("NOPERM", "UNKNOWN"):
            raise
        return await _greet(server)
    limit = info.get("maxmemory")
    return _Found(
        str(info.get("redis_version", "")),
        str(info.get("redis_mode") or info.get("server_mode", "")),
        str(info.get("maxmemory_policy", "noeviction")),
        None if limit is None else int(limit),
    )


async def _greet(server: Server) -> _Found:
    greet: Callable[..., Awaitable[Any]] = server.redis.execute_command
    try:
        told = await greet("HELLO", 2)
    except SERVER_ERRORS as error:
        if answer_of(error).waits:
            raise
        return _Found()
    if isinstance(told, list):
        told = dict(zip(told[::2], told[1::2], strict=False))
    facts = told if isinstance(told, dict) else {}
    version, mode = (facts.get(name, b"").decode() for name in (b"version", b"mode"))
    return _Found(version, mode)
