"""Clients away from where they were connected: other loops, notebooks, greenlets, many threads."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S

from tokenbus.producer import AsyncClient, Client
from tokenbus.producer.client import loop_thread
from tokenbus.producer.errors import ClientClosed, WrongEventLoop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tokenbus.producer.server.embedded import EmbeddedServer

CALLS: dict[str, Callable[[AsyncClient], Awaitable[object]]] = {
    "submit": lambda client: client.submit("x"),
    "submit_many": lambda client: client.submit_many([{"prompt": "x"}]),
    "result": lambda client: client.result("nobody"),
    "stream": lambda client: anext(client.stream("nobody")),
    "cancel": lambda client: client.cancel("nobody"),
    "webhook": lambda client: client.webhook("nobody"),
}
GREENLETS = """
import gevent.monkey
gevent.monkey.patch_all()
import gevent, os
from tokenbus.producer import Client
clients = [Client(os.environ["BUS_URL"], pool=os.environ["BUS_POOL"]) for _ in range(3)]
def ask(client):
    job = client.submit("x")
    client.cancel(job)
    return [event.finish.reason for event in client.stream(job)]
asked = [gevent.spawn(ask, client) for client in clients for _ in range(4)]
assert [each.get() for each in asked] == [["cancelled"]] * 12
for client in clients:
    client.close()
print("closed")
"""


@pytest.mark.parametrize("call", CALLS)
def test_second_event_loop_is_told_at_once(
    private_server: EmbeddedServer, pool: str, call: str
) -> None:
    """Every call of an asynchronous client refuses another loop, and does nothing there."""

    async def use() -> None:
        with pytest.raises(WrongEventLoop, match="another event loop"):
            await CALLS[call](client)
        async with await AsyncClient.connect(private_server.url, pool) as here:
            assert (await here.scripts.lease.load()).get("jobs", 0) == 0

    with asyncio.Runner() as first:
        client = first.run(AsyncClient.connect(private_server.url, pool))
        asyncio.run(use())
        with pytest.raises(WrongEventLoop):
            asyncio.run(client.close())
        first.run(client.close())
    asyncio.run(client.close())


def test_call_outside_of_asyncio_is_told(private_server: EmbeddedServer, pool: str) -> None:
    """Under trio, say, a coroutine runs in no loop of asyncio's: connecting and calls say so."""
    with pytest.raises(WrongEventLoop, match="asyncio alone"):
        AsyncClient.connect(private_server.url, pool).send(None)
    with asyncio.Runner() as runner:
        client = runner.run(AsyncClient.connect(private_server.url, pool))
        for call in CALLS.values():
            with pytest.raises(WrongEventLoop, match="asyncio alone"):
                call(client).__await__().__next__()
        runner.run(client.close())


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
def test_client_is_sent_to_no_other_process(
    private_server: EmbeddedServer, pool: str, take: Callable[[object], object]
) -> None:
    """Pickle and copy are told what to give the other process instead."""
    with Client(private_server.url, pool) as client, asyncio.Runner() as runner:
        one = runner.run(AsyncClient.connect(private_server.url, pool))
        for each in (client, one):
            with pytest.raises(TypeError, match=f"{type(each).__name__} cannot be pickled"):
                take(each)
        runner.run(one.close())


async def test_blocking_client_works_inside_a_running_loop(
    private_server: EmbeddedServer, pool: str
) -> None:
    """A cell of a notebook runs in a loop; the blocking client has its own."""
    with Client(private_server.url, pool) as client:
        job = client.submit("x")
        client.cancel(job)
        assert [event.finish.reason for event in client.stream(job) if event.finish] == [
            "cancelled"
        ]


def test_threads_share_a_blocking_client(private_server: EmbeddedServer, pool: str) -> None:
    """Many threads submit and read through one client."""
    with Client(private_server.url, pool) as client, ThreadPoolExecutor(8) as threads:

        def ask(_: int) -> bool:
            job = client.submit("x")
            client.cancel(job)
            return any(event.finish for event in client.stream(job))

        assert all(threads.map(ask, range(32)))


def test_client_waits_for_no_thread_at_the_end_of_the_interpreter(
    private_server: EmbeddedServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When globals are destroyed their client's thread has stopped: a call raises, closing ends."""
    client = Client(private_server.url, pool)
    opened: Any = client._open_portal
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    monkeypatch.setattr(opened, "run", pytest.fail)
    with pytest.raises(ClientClosed, match="the interpreter ends"):
        client.submit("x")
    client.close()
    monkeypatch.undo()
    opened.close()


class _Greenlet(threading.Thread):
    """A thread as monkey-patching makes them: the event loops of all others seem to run in it."""

    loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> None:
        asyncio._set_running_loop(_Greenlet.loop)
        super().run()


def test_clients_share_a_loop_where_threads_are_greenlets(
    private_server: EmbeddedServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second client takes the loop of the first, which lives until both are closed."""
    monkeypatch.setattr(f"{loop_thread.__name__}.threading.Thread", _Greenlet)
    monkeypatch.setattr(_Greenlet, "loop", None)
    first = Client(private_server.url, pool)
    opened: Any = first._open_portal
    monkeypatch.setattr(_Greenlet, "loop", opened.loop)
    second = Client(private_server.url, pool)
    first.close()
    assert second.submit("x").created
    second.close()
    assert opened.loop.is_closed()


def test_foreign_loop_where_threads_are_greenlets_is_told(
    private_server: EmbeddedServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where somebody else's loop runs in all greenlets there is no place for a blocking client."""
    foreign = asyncio.new_event_loop()
    monkeypatch.setattr(f"{loop_thread.__name__}.threading.Thread", _Greenlet)
    monkeypatch.setattr(_Greenlet, "loop", foreign)
    with pytest.raises(WrongEventLoop, match="greenlets"):
        Client(private_server.url, pool)
    foreign.close()


def test_clients_under_gevent(private_server: EmbeddedServer, pool: str) -> None:
    """Three blocking clients and a dozen greenlets: each is answered, and closing ends."""
    pytest.importorskip("gevent", reason="gevent is not installed")
    env = os.environ | {"BUS_URL": private_server.url, "BUS_POOL": pool}
    command = [sys.executable, "-P", "-c", GREENLETS]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == "closed\n", done.stderr
