"""An embedded server's folder under attack: what to do to it, and what is to be true afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from patience import PATIENCE_S
from redis.exceptions import RedisError

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.server.connection import retrying
from tokenbus.producer.server.embedded import join_shared
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# A busy server is waited for longer than it is busy.
PATIENT = ClientSettings(retry_for_s=120)
# A refused write is told, not waited out.
IMPATIENT = ClientSettings(retry_for_s=0.2)
LUA_BUSY = """
local function now() local t = redis.call('TIME') return t[1] * 1000 + t[2] / 1000 end
local till = now() + ARGV[1]
while now() < till do end
"""


def servers_in(folder: Path) -> list[int]:
    """Return the servers that run in a folder, children of theirs that write a file left out."""
    pids = [pid for pid, name, _ in _processes_in(folder) if b"-server" in name]
    return [pid for pid in pids if _parent(pid) not in pids]


def guards_in(folder: Path) -> list[int]:
    """Return the guards that run in a folder."""
    return [pid for pid, _, command in _processes_in(folder) if b"embedded_guard" in command]


def _processes_in(folder: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield pid, name and command line of the processes whose working folder it is."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                name = (entry / "comm").read_bytes()
                yield int(entry.name), name, (entry / "cmdline").read_bytes()


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


@dataclass
class Household:
    """Jobs that a folder's server has accepted, and clients of it."""

    folder: Path
    accepted: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Return the URL of the folder."""
        return f"embedded://{quote(os.fsencode(self.folder))}"

    async def submit(self, client: AsyncClient, count: int = 5) -> None:
        """Submit jobs and note which were accepted."""
        for _ in range(count):
            self.accepted.append((await client.submit("x")).job_id)

    async def join(self, count: int = 5) -> None:
        """Join several times at once, submit through each, and check that there is one server."""
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(self._join() for _ in range(count)))
            await self.check()

    async def _join(self) -> None:
        async with await AsyncClient.connect(self.url, settings=PATIENT) as client:
            await self.submit(client, 1)

    async def check(self) -> None:
        """Wait for one guard with one server, never two, and check that it knows every job."""
        async with (
            asyncio.timeout(PATIENCE_S),
            await AsyncClient.connect(self.url, settings=PATIENT) as client,
        ):
            while not await self._is_settled(client):
                pass
            for job_id in self.accepted:
                record = partial(client.scripts.queue.record, job_id)
                # The server may load its data.
                found = await retrying(record, ServerUrl.parse(self.url), PATIENT.retry_for_s)
                assert found is not None, job_id

    async def _is_settled(self, client: AsyncClient) -> bool:
        servers = servers_in(self.folder)
        assert len(servers) <= 1
        redis: Any = client.scripts.redis
        with suppress(RedisError, OSError):
            told = await redis.info("server")
            return len(guards_in(self.folder)) == 1 and servers == [int(told["process_id"])]
        return False


async def busy(home: Household, seconds: float) -> None:
    """Let the server answer nothing but BUSY, and before that nothing, for a time."""
    async with (
        await AsyncClient.connect(home.url) as client,
        await AsyncClient.connect(home.url) as other,
    ):
        redis: Any = client.scripts.redis
        loop = asyncio.ensure_future(redis.eval(LUA_BUSY, 0, round(seconds * 1000)))
        # Once a question is left waiting, the script runs.
        asking: Any = other.scripts.redis
        with suppress(TimeoutError, RedisError):
            while True:
                await asyncio.wait_for(asking.ping(), 0.1)
        assert not loop.done()
        await home.join()
        await loop


async def cleaned(home: Household, names: Sequence[str]) -> None:
    """Delete files as a cleaner of temporary folders does."""
    for name in names:
        (home.folder / name).unlink(missing_ok=True)
    await home.join()


async def killed(home: Household, *, guard: bool, server: bool) -> None:
    """Kill guard or server or both."""
    victims = [*(guards_in(home.folder) * guard), *(servers_in(home.folder) * server)]
    assert len(victims) == guard + server
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    await home.join()


async def filled(home: Household) -> None:
    """Fill the disk until the server refuses writes, and make room again."""
    ballast = home.folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass
    async with await AsyncClient.connect(home.url, settings=IMPATIENT) as client:
        with suppress(RedisError, ProducerError):
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    await home.submit(client, 1)
        await asyncio.gather(*(asyncio.to_thread(_join_and_leave, home.folder) for _ in range(5)))
        assert len(servers_in(home.folder)) == 1
        ballast.unlink()
        async with asyncio.timeout(PATIENCE_S):
            while not await _is_accepted(home, client):
                pass
    await home.join()


async def _is_accepted(home: Household, client: AsyncClient) -> bool:
    with suppress(RedisError, ProducerError):
        await home.submit(client, 1)
        return True
    return False


def _join_and_leave(folder: Path) -> None:
    join_shared(folder).close()


# Joins from many processes at once, each with a folder for temporary files of its own.
CROWD = """
import os, sys, tempfile
from tokenbus.producer import Client
url, count = sys.argv[1], int(sys.argv[2])
gate, opener = os.pipe()
for _ in range(count):
    if os.fork() == 0:
        os.close(opener)
        tempfile.tempdir = tempfile.mkdtemp()
        os.read(gate, 1)
        with Client.connect(url) as client:
            os.write(1, f"{client.submit('x').job_id}\\n".encode())
            sys.stdin.read()
        os.rmdir(tempfile.tempdir)
        os._exit(0)
os.close(opener)
for _ in range(count):
    os.wait()
"""


async def crowded(home: Household, count: int = 20) -> None:
    """Join from many processes at once."""
    crowd = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", CROWD, home.url, str(count)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert crowd.stdout is not None
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(count):
            line = await crowd.stdout.readline()
            assert line
            home.accepted.append(line.decode().strip())
        await home.check()
        await crowd.communicate(b"")
