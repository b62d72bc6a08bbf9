"""`tokenbus top`: a pool in the terminal, looked at again and again; figures and no texts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from tokenbus.producer.client.watching.pool_watch import PoolWatch
from tokenbus.producer.commands.hints import connected, server_url
from tokenbus.producer.commands.watching.top_view import TopView
from tokenbus.producer.errors import ServerError
from tokenbus.producer.server.connection import retrying

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.client.watching.pool_watch import PoolSight

# A look at a server that is away is given up after this, and told as such.
_RETRY_FOR_S = 5.0


def run_top(url: str | None, pool: str, *, interval_s: float, is_once: bool) -> int:
    """Show a pool until `q` or Ctrl-C, or once where output is no terminal; return 0.

    Raises: ServerError where the server cannot be reached at the start.
    """
    is_once = is_once or not sys.stdout.isatty()
    asyncio.run(_run(server_url(url, "top"), pool, interval_s, is_once))
    return 0


async def _run(url: str, pool: str, interval_s: float, is_once: bool) -> None:
    async with connected(url, pool) as client:
        watch = PoolWatch(client.scripts.redis, client.scripts.keys)
        view, console = TopView(), Console(highlight=False)
        view.see(await _look(client, watch))
        if is_once:
            console.print(view)
            return
        stopped = asyncio.Event()
        with _keys(stopped), Live(view, console=console, screen=True, auto_refresh=False) as live:
            while not stopped.is_set():
                live.refresh()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stopped.wait(), interval_s)
                    break
                await _see_again(client, watch, view)


async def _see_again(client: AsyncClient, watch: PoolWatch, view: TopView) -> None:
    """Look once more; while the server is away the last look stays, and says so."""
    try:
        view.see(await _look(client, watch))
    except ServerError as error:
        view.lose(str(error))


async def _look(client: AsyncClient, watch: PoolWatch) -> PoolSight:
    return await retrying(watch.look, client.url, _RETRY_FOR_S)


@contextlib.contextmanager
def _keys(stopped: asyncio.Event) -> Iterator[None]:
    """Let `q` stop it, where the input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    descriptor, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)

    def read() -> None:
        if set(os.read(descriptor, 64)) & set(b"qQ\x1b\x04"):
            stopped.set()

    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
