"""Hints on standard error: what a command waits for, told as soon as it waits."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.living_pools import living_pools
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.settings import ClientSettings
from tokenbus.producer.terminal import say, visible
from tokenbus.producer.wait_notice import waiting_told

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Pools that are named to one who may have mistyped the name of one.
_MAX_POOLS = 12


def tell(text: str) -> None:
    """Print a hint."""
    say(f"tokenbus: {visible(text)}")


def server_url(given: str | None, command: str) -> str:
    """Return the URL of the server of a command that cannot use one of its own.

    Raises: UrlInvalid.
    """
    url = given or ClientSettings().redis_url
    ServerUrl.parse(url).refuse_private(command)
    return url


@asynccontextmanager
async def connected(
    url: str, pool: str, retry_for_s: float | None = None
) -> AsyncIterator[AsyncClient]:
    """Connect a client, and say so if its server lets it wait. Raises: as `AsyncClient.connect`."""
    settings = ClientSettings()
    if retry_for_s is not None:
        settings = settings.model_copy(update={"retry_for_s": retry_for_s})
    shown, trying_s = ServerUrl.parse(url), settings.retry_for_s
    with waiting_told(lambda: tell(f"no server at {shown} yet, trying for {trying_s:g} s")):
        client = await AsyncClient.connect(url, pool, settings)
    async with client:
        yield client


async def tell_of_workers(client: AsyncClient, pool: str) -> None:
    """Say why a job of the pool may wait for long: no worker is there, or the pool is paused.

    A server that tells the caller nothing of its workers is no reason to fail.
    """
    try:
        status = await client.status()
    except (ProducerError, RedisError):
        return
    if status.paused_for_s is not None:
        tell(f"pool {pool} is paused: the job waits until `tokenbus resume`")
    if status.ready:
        return
    if status.workers:
        tell(f"no worker of pool {pool} has an engine now; the job waits for one")
        return
    others = await living_pools(client.scripts)
    known = ""
    if others is not None:
        shown = ", ".join(others[:_MAX_POOLS]) + (" …" if len(others) > _MAX_POOLS else "")
        known = f"; pools with workers here: {shown}" if others else "; no pool here has any"
    tell(f"no worker in pool {pool}{known}; the job waits for one")
