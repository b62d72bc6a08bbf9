"""URLs, and servers that will not do."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from redis.exceptions import ConnectionError as RedisConnectionError
from servers.fixtures import server_binary
from servers.ports import free_port

from tokenbus.producer.errors import (
    ServerRefused,
    ServerUnreachable,
    ServerUnsuitable,
    UrlInvalid,
)
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server.connection import make_redis, open_server
from tokenbus.producer.server.embedded import start_private
from tokenbus.producer.server.shown_url import hide_password
from tokenbus.producer.server.url import ServerKind, ServerUrl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tokenbus.producer.server.embedded import EmbeddedServer


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("redis://localhost", ServerKind.REMOTE),
        ("rediss://u:p@h:6380/2", ServerKind.REMOTE),
        ("unix:///run/valkey.sock", ServerKind.REMOTE),
        ("redis+cluster://h:7000", ServerKind.CLUSTER),
        ("valkey://h", ServerKind.REMOTE),
        ("valkeys+cluster://u:p@h:7000", ServerKind.CLUSTER),
        ("rediss+sentinel://u:p@h1:26379,h2/bus/1", ServerKind.SENTINEL),
        ("embedded://", ServerKind.PRIVATE),
        ("embedded:///", ServerKind.PRIVATE),
        ("embedded:///var/lib/bus", ServerKind.SHARED),
    ],
)
def test_urls_that_have_a_meaning(text: str, kind: ServerKind) -> None:
    """Each scheme names one way to a server."""
    assert ServerUrl.parse(text).kind is kind


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "localhost:6379",
            "http://x",
            "redis://",
            "redis://h:x",
            "unix://",
            "embedded://data",
        ),
        *("redis+cluster://", "redis+sentinel://h", "redis+sentinel:///bus"),
        *("redis+sentinel://h:x/bus", "redis+sentinel://h/bus/first"),
        # Connection strings of other clients.
        *("redis://h,h2", "redis://h;ssl=true", "redis://h&db=1", "redis://h:1,ssl=True"),
    ],
)
def test_urls_without_meaning_are_refused(text: str) -> None:
    """Anything else is told what would do."""
    with pytest.raises(UrlInvalid):
        ServerUrl.parse(text)


@pytest.mark.parametrize(
    ("text", "database"),
    [
        ("redis://localhost", 0),
        ("redis://localhost/3", 3),
        ("rediss://localhost?db=3", 3),
        ("unix:///run/valkey.sock", 0),
        ("unix:///run/valkey.sock?db=15", 15),
        ("redis+sentinel://h1,h2/bus", 0),
        ("redis+sentinel://h1,h2/bus/3", 3),
        ("redis+cluster://h:7000", 0),
    ],
)
def test_database_of_a_url_is_that_of_its_channels(text: str, database: int) -> None:
    """Whatever way a URL names its database, keys and scripts are told."""
    assert Scripts(make_redis(text)).keys.database == database


@pytest.mark.parametrize(
    "text",
    [
        "redis://me:hush@h:1/0",
        "rediss://:hush@h",
        "unix:///s?password=hush&db=1",
        "redis://me:hush@[broken",
        "redis+sentinel://me:hush@h1:1,h2:2/bus?sentinel_password=hush",
    ],
)
def test_password_is_never_shown(text: str) -> None:
    """No form of a URL is printed with its password."""
    assert "hush" not in hide_password(text)


def test_private_server_is_refused_where_others_must_reach_it() -> None:
    """`submit` and `worker` point from embedded:// to the shared form."""
    with pytest.raises(UrlInvalid, match="embedded:///path"):
        ServerUrl.parse("embedded://").refuse_private("worker")
    ServerUrl.parse("embedded:///path").refuse_private("worker")


@pytest.fixture
async def own_server() -> AsyncIterator[EmbeddedServer]:
    """Give a server whose configuration the test may change."""
    server = start_private()
    yield server
    server.close()


async def test_evicting_server_is_refused(own_server: EmbeddedServer) -> None:
    """A server that may evict keys is refused, with the setting to change, and with a switch."""
    redis = make_redis(own_server.url)
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    await (await open_server(own_server.url)).close()  # without a limit nothing is evicted
    await redis.config_set("maxmemory", "1gb")
    with pytest.raises(ServerUnsuitable, match="set maxmemory-policy noeviction"):
        await open_server(own_server.url)
    await (await open_server(f"{own_server.url}?allow_eviction=true")).close()
    await redis.aclose()


async def test_refused_credentials_are_told_at_once(own_server: EmbeddedServer) -> None:
    """A wrong password is no reason to go on trying."""
    redis = make_redis(own_server.url)
    await redis.config_set("requirepass", "right")
    for url in (own_server.url, f"{own_server.url}?password=wrong"):
        with pytest.raises(ServerUnsuitable) as caught:
            await open_server(url, retry_for_s=3600)
        assert "wrong" not in str(caught.value)
    await redis.aclose()
    opened = await open_server(f"{own_server.url}?password=right")
    await opened.close()


@pytest.fixture
def plain_port() -> Iterator[int]:
    """Run a server that is neither of a cluster nor a sentinel, and give its port."""
    port = free_port()
    command = [server_binary("valkey"), *f"--port {port} --bind 127.0.0.1 --save".split(), ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        yield port
        process.kill()


@pytest.mark.processes
async def test_server_of_another_kind_is_told_at_once(plain_port: int) -> None:
    """A cluster's or sentinels' URL that leads to a plain server says what to write."""
    await (await open_server(f"redis://127.0.0.1:{plain_port}", retry_for_s=PATIENCE_S)).close()
    for kind, place in (("cluster", ""), ("sentinel", "/bus")):
        with pytest.raises(ServerRefused, match="write redis://host:port") as caught:
            await open_server(f"redis+{kind}://127.0.0.1:{plain_port}{place}", retry_for_s=3600)
        assert caught.value.code == f"NO{kind.upper()}"


async def test_call_on_a_connection_that_was_closed_is_a_lost_one(
    own_server: EmbeddedServer,
) -> None:
    """Whoever closes a client under a call leaves it an error that all callers know."""
    redis = make_redis(own_server.url)
    connection = await redis.connection_pool.get_connection()
    await connection.send_command("PING")
    assert await connection.read_response() == b"PONG"
    connection._writer.close()
    with pytest.raises(RedisConnectionError, match="closed"):
        await connection.send_packed_command([b"*1\r\n$4\r\n", b"PING\r\n"])
    await redis.aclose()


async def test_absent_server_is_tried_for_the_time_given() -> None:
    """A socket nobody listens on is unreachable, by its URL."""
    with pytest.raises(ServerUnreachable, match="unix:///nowhere/s"):
        await open_server("unix:///nowhere/s", retry_for_s=0.2)
