"""The embedded server's life: shared, outliving, restarted, gone with the last client."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from servers.fixtures import SERVER_KINDS, server_binary
from workers.stubs import raw, until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import EmbeddedUnavailable
from tokenbus.producer.server.connection import make_redis, open_server
from tokenbus.producer.server.embedded import EmbeddedServer, answers, join_shared, start_private

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

pytestmark = pytest.mark.processes

JOIN = """
import sys, time
from pathlib import Path
from tokenbus.producer.server.embedded import join_shared
server = join_shared(Path(sys.argv[1]))
print(server.url, flush=True)
sys.stdin.read()
"""


def join_elsewhere(folder: Path) -> subprocess.Popen[bytes]:
    """Join a folder's server from another process and wait until it has."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", JOIN, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"unix://")
    return process


def is_gone(server: EmbeddedServer) -> Callable[[], Awaitable[bool]]:
    """Return a condition: nothing answers on the server's socket."""

    async def condition() -> bool:
        return not await asyncio.to_thread(answers, server.socket_path)

    return condition


async def pid_of(server: EmbeddedServer) -> int:
    """Return the process id of the server itself."""
    redis = make_redis(server.url)
    info = await redis.info("server")
    await redis.aclose()
    return int(info["process_id"])


@pytest.mark.parametrize("kind", SERVER_KINDS)
async def test_server_outlives_its_first_comer(tmp_path: Path, kind: str) -> None:
    """SIGKILL of the process that started the server disturbs nobody; the last one ends it."""
    server_binary(kind)
    first = join_elsewhere(tmp_path)
    server = join_shared(tmp_path, server_binary(kind))
    redis = make_redis(server.url)
    await redis.set("key", "value")
    first.kill()
    await asyncio.to_thread(first.wait, 20)
    assert await redis.get("key") == b"value"
    await redis.aclose()
    server.close()
    await until(is_gone(server))


async def test_jobs_survive_the_last_client(tmp_path: Path) -> None:
    """What was accepted is there when somebody opens the folder again."""
    url = f"embedded://{tmp_path}/bus"
    async with await AsyncClient.connect(url) as client:
        job = await client.submit("x")
    async with await AsyncClient.connect(url) as client:
        assert await client.cancel(job.job_id) is True


async def test_two_processes_share_one_server(tmp_path: Path) -> None:
    """Whoever names the folder reaches the same server; comers at once start only one."""
    joining = [asyncio.to_thread(join_elsewhere, tmp_path) for _ in range(3)]
    processes = await asyncio.gather(*joining)
    server = join_shared(tmp_path)
    async with await AsyncClient.connect(f"embedded://{tmp_path}") as client:
        assert client.effective_url == server.url
    redis = make_redis(server.url)
    assert len(await raw_clients(redis)) == 1
    await redis.aclose()
    for process in processes:
        process.kill()
        await asyncio.to_thread(process.wait, 20)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
    server.close()
    await until(is_gone(server))


async def raw_clients(redis: object) -> list[object]:
    """Return the connections of the server."""
    listed: list[object] = await redis.client_list()  # type: ignore[attr-defined]  # redis-py states it wrongly
    return listed


async def test_killed_server_is_started_again_with_its_data(tmp_path: Path) -> None:
    """A server that dies comes back on its socket with what the AOF held; streams go on."""
    async with await AsyncClient.connect(f"embedded://{tmp_path}") as client:
        job = await client.submit("x")
        reading = asyncio.create_task(last_event(client, job.job_id))
        await raw(client.scripts).wait(0, 0)
        await raw(client.scripts).bgrewriteaof()
        server = join_shared(tmp_path)
        await until(lambda: aof_written(client))
        os.kill(await pid_of(server), signal.SIGKILL)
        assert await client.cancel(job.job_id) is True
        assert await asyncio.wait_for(reading, PATIENCE_S) == "cancelled"
        server.close()


async def aof_written(client: AsyncClient) -> bool:
    """Tell whether everything so far is in the append-only file."""
    info = await raw(client.scripts).info("persistence")
    return not (
        info["aof_rewrite_in_progress"]
        or info["aof_rewrite_scheduled"]
        or info["aof_pending_bio_fsync"]
        or info["aof_buffer_length"]
    )


async def last_event(client: AsyncClient, job_id: str) -> str:
    """Read a job to its end and return the reason."""
    reason = ""
    async for event in client.stream(job_id):
        if event.finish is not None:
            reason = event.finish.reason
    return reason


async def test_private_server_leaves_nothing_behind() -> None:
    """A private server ends with its process's hold, and its folder goes."""
    server = start_private()
    assert answers(server.socket_path)
    server.close()
    server.close()

    async def folder_gone() -> bool:
        return not server.folder.exists()

    await until(folder_gone)


async def test_shared_server_is_safe_for_jobs(tmp_path: Path) -> None:
    """The shared server keeps an append-only file, evicts nothing and listens on no port."""
    opened = await open_server(f"embedded://{tmp_path}")
    info = await opened.redis.info()
    assert (info["aof_enabled"], info["maxmemory_policy"], info["tcp_port"]) == (1, "noeviction", 0)
    assert (tmp_path / "server.sock").stat().st_mode & 0o077 == 0
    await opened.close()


async def test_long_folder_name_still_gets_a_socket(tmp_path: Path) -> None:
    """A folder whose name is too long for a socket works like any other."""
    folder = tmp_path / ("long-" * 30)
    server = join_shared(folder)
    assert answers(server.socket_path)
    server.close()
    await until(is_gone(server))


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A binary that exits at once, or a folder that is a file, is one clear error."""
    with pytest.raises(EmbeddedUnavailable, match="exit code 1"):
        join_shared(tmp_path / "a", "/bin/false")
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedUnavailable, match="file"):
        join_shared(tmp_path / "file")
