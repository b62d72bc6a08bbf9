"""The embedded server's life: shared, outliving, restarted, gone with the last client."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock
from urllib.parse import quote

import pytest
from matrix import SERVER_KINDS
from patience import PATIENCE_S
from servers.embedded_folder import guards_in, servers_in
from servers.fixtures import server_binary
from workers.stubs import raw, until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import EmbeddedUnavailable
from tokenbus.producer.server.connection import make_redis, open_server
from tokenbus.producer.server.embedded import EmbeddedServer, join_shared, start_private
from tokenbus.producer.server.guarded.data_folder import DataFolder
from tokenbus.producer.server.guarded.server_process import answers, sync_aof
from tokenbus.producer.server.guarded.unforked import close_unforked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

pytestmark = pytest.mark.processes

NOBODY = 65_534

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
    await asyncio.to_thread(first.wait, PATIENCE_S)
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
        await asyncio.to_thread(process.wait, PATIENCE_S)
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


async def test_server_writes_before_it_answers(tmp_path: Path) -> None:
    """A job that was accepted is in the file, however long the disk takes: no kill takes it."""
    async with await AsyncClient.connect(f"embedded://{tmp_path}") as client:
        redis = raw(client.scripts)
        assert await redis.config_get("appendfsync") == {"appendfsync": "no"}
        [file] = (tmp_path / "appendonlydir").glob("*.incr.aof")
        for _ in range(20):
            job = await client.submit("x")
            assert job.job_id.encode() in file.read_bytes()


def test_guard_syncs_what_the_server_writes(tmp_path: Path) -> None:
    """All files that grow: a power cut takes no more than what came since."""
    synced: set[str] = set()
    (tmp_path / "appendonlydir").mkdir()
    for name in ("a.1.base.rdb", "a.1.incr.aof", "a.2.incr.aof", "a.manifest"):
        (tmp_path / "appendonlydir" / name).touch()

    def fsync(fd: int) -> None:
        synced.add(Path(f"/proc/self/fd/{fd}").readlink().name)

    with mock.patch("os.fsync", fsync):
        sync_aof(tmp_path)
    assert synced == {"a.1.incr.aof", "a.2.incr.aof"}


async def test_clients_outlive_their_guard(tmp_path: Path) -> None:
    """A guard that is killed takes its server along; clients start both again, joiner or not."""
    async with await AsyncClient.connect(f"embedded://{tmp_path}") as client:
        job = await client.submit("x")
        [guard], [server] = guards_in(tmp_path), servers_in(tmp_path)
        os.kill(guard, signal.SIGKILL)
        await until_true(lambda: guards_in(tmp_path) not in ([], [guard]))
        assert await client.cancel(job.job_id) is True
        assert servers_in(tmp_path) not in ([], [server])


async def until_true(condition: Callable[[], bool]) -> None:
    """Wait until something is true."""

    async def asked() -> bool:
        return condition()

    await until(asked)


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


ODD_NAMES = (
    "a b", "quo\"te's", "new\nline", "#%?&@;$(x)", "\u00fcn\u00ef\U0001f600", "back\\slash",
    "-dash", os.fsdecode(b"no-utf8-\xff"), "long-" * 40, "/".join(["deep" * 20] * 12),
)  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES, ids=range(len(ODD_NAMES)))
async def test_folder_may_have_any_name(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any character, any length, and no folder for temporary files: it works like any other."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    folder = tmp_path / name
    opened = await open_server(f"embedded://{quote(os.fsencode(folder))}")
    await opened.redis.set("key", "value")
    assert (folder / "server.sock").is_socket()
    assert (folder / "appendonlydir").is_dir()
    again = await asyncio.to_thread(join_shared, folder)
    redis = make_redis(again.url)
    assert await redis.get("key") == b"value"
    await redis.aclose()
    again.close()
    await opened.close()


async def test_long_name_works_where_opened_folders_have_no_path(tmp_path: Path) -> None:
    """Without /proc a client makes itself a short link, and takes it away again."""
    with mock.patch("os.getpid", return_value=1 << 30):
        server = join_shared(tmp_path / ("long-" * 40))
        link = server.socket_path.parent
        assert link.is_symlink()
        assert link.parent.stat().st_mode & 0o077 == 0
        assert answers(server.socket_path)
        server.close()
    assert not link.parent.exists()


async def test_folder_is_the_same_by_a_link(tmp_path: Path) -> None:
    """A link to a folder leads to its server."""
    server = join_shared(tmp_path / "bus")
    (tmp_path / "link").symlink_to("bus")
    linked = join_shared(tmp_path / "link")
    assert linked.socket_path == server.socket_path
    linked.close()
    server.close()


async def test_folder_that_others_can_swap_is_reached_as_opened(tmp_path: Path) -> None:
    """Where others may write above the folder, a client stays with the one that it has checked."""
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(0o777)
    server = join_shared(above / "bus")
    (above / "bus").rename(above / "gone")
    (above / "bus").mkdir()
    assert answers(server.socket_path)
    assert not answers(above / "bus" / "server.sock")
    server.close()


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o775, 0o702])
def test_folder_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    """It is left as it is, and the sentence has mode and remedy."""
    folder = tmp_path / "o p"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(EmbeddedUnavailable, match=f"mode {mode:04o}.*chmod 700 '{folder}'"):
        join_shared(folder)
    assert list(folder.iterdir()) == []


async def test_folder_and_files_are_closed_to_others(tmp_path: Path) -> None:
    """A folder that others may only read is closed, or at least all files in it."""
    (tmp_path / "own" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes").write_text("of others too")
    for name in ("own", "own/appendonlydir", "used", "used/notes"):
        (tmp_path / name).chmod(0o755)
    old_log = tmp_path / "own" / "server.log"
    old_log.touch(0o644)
    for name, mode in (("own", 0o700), ("used", 0o755), ("new/below", 0o700)):
        async with await AsyncClient.connect(f"embedded://{tmp_path}/{name}") as client:
            await client.submit("x")
            for path in (tmp_path / name).rglob("*"):
                assert path.name == "notes" or path.stat().st_mode & 0o077 == 0, path
        assert (tmp_path / name).stat().st_mode & 0o777 == mode
    assert (tmp_path / "used" / "notes").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "new").stat().st_mode & 0o077 == 0


@pytest.fixture
def foreign() -> Iterator[Path]:
    """Give a folder that anybody can reach and that belongs to another user."""
    if os.geteuid() != 0:
        pytest.skip("only root makes folders of others and becomes another user")
    # Another user cannot reach pytest's folder. A guard may still be ending its server in it.
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o711)
        folder = Path(name) / "bus"
        folder.mkdir(mode=0o777)
        os.chown(folder, NOBODY, NOBODY)
        yield folder
        # A guard that nobody needs any more ends by itself, and writes until then.
        limit = time.monotonic() + PATIENCE_S
        while guards_in(folder) and time.monotonic() < limit:
            time.sleep(0.01)


def test_folder_of_another_user_is_refused(foreign: Path) -> None:
    """Also to root: its owner would read every prompt."""
    for mode in (0o777, 0o700):
        foreign.chmod(mode)
        with pytest.raises(EmbeddedUnavailable, match=rf"belongs to .*uid {NOBODY}"):
            join_shared(foreign)
    assert list(foreign.iterdir()) == []


def test_link_of_another_user_is_refused(foreign: Path, tmp_path: Path) -> None:
    """It may lead elsewhere tomorrow, so it is not followed to a folder of one's own either."""
    link = foreign.with_name("link")
    link.symlink_to(tmp_path)
    os.chown(link, NOBODY, NOBODY, follow_symlinks=False)
    for path in (link, link / "bus"):
        with pytest.raises(EmbeddedUnavailable, match=rf"is a link that .*{NOBODY}"):
            join_shared(path)
    assert list(tmp_path.iterdir()) == []


AS_NOBODY = """
import os, sys
from pathlib import Path
from tokenbus.producer.errors import EmbeddedUnavailable
from tokenbus.producer.server.embedded import join_shared
os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
try:
    join_shared(Path(sys.argv[1]))
except EmbeddedUnavailable as error:
    print(error)
"""


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o777])
def test_folder_of_root_is_refused_to_another_user(foreign: Path, mode: int) -> None:
    """Whether it may be opened or not, and whether a server runs there or not."""
    os.chown(foreign, 0, 0)
    foreign.chmod(0o700)
    server = join_shared(foreign)
    foreign.chmod(mode)
    told = subprocess.run(
        [sys.executable, "-P", "-c", AS_NOBODY, str(foreign), str(NOBODY)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert "belongs to user root (uid 0)" in told.stdout, told.stderr
    server.close()


LISTEN = """
import os, socket, sys
os.chdir(sys.argv[1])
listener = socket.socket(socket.AF_UNIX)
listener.bind("server.sock")
if len(sys.argv) > 2:
    os.setuid(int(sys.argv[2]))
listener.listen()
print("listens", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("is_foreign", [False, True])
def test_listener_without_the_lock_is_no_server(tmp_path: Path, *, is_foreign: bool) -> None:
    """What listens without the lock stops the start, and another user's is sent nothing."""
    if is_foreign and os.geteuid() != 0:
        pytest.skip("only root becomes another user")
    arguments = [str(tmp_path), *([str(NOBODY)] if is_foreign else [])]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", LISTEN, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"listens\n"
    reason = f"is of .*{NOBODY}" if is_foreign else f"process {process.pid} listens there without"
    with pytest.raises(EmbeddedUnavailable, match=reason):
        join_shared(tmp_path)
    process.communicate(b"")


def test_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A binary that exits at once, or a folder that is a file, is one clear error."""
    with pytest.raises(EmbeddedUnavailable, match="exit code 1"):
        join_shared(tmp_path / "a", "/bin/false")
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedUnavailable, match="file"):
        join_shared(tmp_path / "file")


@pytest.mark.parametrize(
    ("pattern", "said"), [("*.incr.aof", "Bad file format"), ("*.manifest", "manifest file")]
)
async def test_file_that_cannot_be_read_is_told(tmp_path: Path, pattern: str, said: str) -> None:
    """A server that ends while it loads has not started; the last that it said is the reason."""
    started = join_shared(tmp_path)
    redis = make_redis(started.url)
    await redis.set("known", "yes")
    await redis.aclose()
    started.close()

    async def has_ended() -> bool:
        return not guards_in(tmp_path)

    await until(has_ended)
    [file] = (tmp_path / "appendonlydir").glob(pattern)
    file.write_bytes(b"garbage" + file.read_bytes())
    with pytest.raises(EmbeddedUnavailable, match=rf"did not start.*{said}.*see server\.log"):
        join_shared(tmp_path)


def test_fork_at_the_start_of_a_guard_keeps_no_lock(tmp_path: Path) -> None:
    """Else no second guard could ever start: a web server's worker may live for weeks."""
    data = DataFolder.open(tmp_path)
    lock = data.take_guard_lock()
    assert lock is not None
    ended, end = os.pipe()
    has_begun, begin = os.pipe()
    pid = os.fork()
    if pid == 0:
        # The fork lives until its parent lets go of the pipe.
        os.close(end)
        os.write(begin, b"!")
        os.read(ended, 1)
        os._exit(0)
    try:
        assert os.read(has_begun, 1) == b"!"
        assert data.take_guard_lock() is None
        close_unforked(lock)
        again = data.take_guard_lock()
        assert again is not None
        close_unforked(again)
    finally:
        os.close(end)
        os.waitpid(pid, 0)
        for fd in (ended, has_begun, begin):
            os.close(fd)
        data.close()


def test_private_server_without_a_temporary_folder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container whose file system is read-only has none."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(EmbeddedUnavailable, match="no temporary folder"):
        start_private()
