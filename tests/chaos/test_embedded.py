"""Ways to a second server on one folder: there is one, and every job that it accepted is there."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from rides.scale import IS_SHORT
from servers.embedded_folder import (
    PATIENT,
    Household,
    busy,
    cleaned,
    crowded,
    filled,
    killed,
)
from servers.fixtures import server_binary

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.server.embedded import join_shared
from tokenbus.producer.server.guarded.data_folder import (
    CLIENTS_LOCK,
    GUARD_LOCK,
    SOCKET,
    SPARE_SOCKET,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

ROUNDS = 1 if IS_SHORT else 20
# Longer than one call waits, and longer than a joiner once waited; the two kinds of server make
# twenty rounds.
BUSY_S = [2.5] if IS_SHORT else [10, *[2.5] * 9]
CLEANED = ([SOCKET], [SOCKET, SPARE_SOCKET], [SOCKET, SPARE_SOCKET, CLIENTS_LOCK, GUARD_LOCK])


@pytest.fixture
async def home(tmp_path: Path, server_kind: str) -> AsyncIterator[Household]:
    """Give a folder whose server a client holds for the whole test, and some jobs in it."""
    async for made in _held(tmp_path / "bus", server_kind):
        yield made


async def _held(folder: Path, server_kind: str) -> AsyncIterator[Household]:
    first = join_shared(folder, server_binary(server_kind))
    made = Household(first.folder)
    async with await AsyncClient.connect(made.url, settings=PATIENT) as client:
        await made.submit(client)
        yield made
        # The one that was there all the time is served too.
        await made.submit(client)
    await made.check()
    first.close()


async def test_busy_server_is_joined(home: Household) -> None:
    """A server that answers nothing for seconds, then BUSY, is there all the same."""
    for seconds in BUSY_S:
        await busy(home, seconds)


@pytest.mark.parametrize("names", CLEANED, ids=["socket", "both-names", "locks-too"])
async def test_deleted_socket_comes_back(home: Household, names: list[str]) -> None:
    """The guard restores the name, or restarts its server on the same file."""
    for _ in range(ROUNDS):
        await cleaned(home, names)


@pytest.mark.parametrize(
    ("guard", "server"),
    [(True, False), (False, True), (True, True)],
    ids=["guard", "server", "both"],
)
async def test_killed_processes_are_replaced_once(
    home: Household, *, guard: bool, server: bool
) -> None:
    """Whoever dies, one guard and one server are there again, also for those who do not join."""
    for _ in range(ROUNDS):
        await killed(home, guard=guard, server=server)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of two megabytes, where this is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir(mode=0o700)
    mount, umount = shutil.which("mount"), shutil.which("umount")
    if mount is None or umount is None or os.geteuid() != 0:
        pytest.skip("a small file system needs root and mount")
    command = [mount, "-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run([umount, "-l", str(disk)], check=True)


async def test_full_disk_starts_no_second_server(small_disk: Path, server_kind: str) -> None:
    """A server that refuses writes is joined, and goes on once there is room."""
    async for home in _held(small_disk, server_kind):
        for _ in range(ROUNDS):
            await filled(home)


async def test_crowd_starts_one_server(tmp_path: Path) -> None:
    """Twenty processes at once, each with its own TMPDIR, in a folder of a long odd name."""
    folder = tmp_path / "a b\n'\"#%\\é{}" / ("long-" * 40)
    for _ in range(ROUNDS):
        home = Household(folder)
        await crowded(home)
    async for found in _held(folder, "valkey"):
        found.accepted += home.accepted
