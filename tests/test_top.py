"""`tokenbus top`: the figures of a pool in a terminal of any size, and no text of anybody."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from rich.console import Console
from workers.forked_command import forked_command
from workers.staged_pool import StagedPool
from workers.stubs import a_job, submit

from tokenbus.producer.client.watching.pool_watch import PoolWatch
from tokenbus.producer.commands.watching.top_view import TopView
from tokenbus.producer.scripts import Scripts
from tokenbus.producer.server.connection import make_redis
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tokenbus.producer.server.embedded import EmbeddedServer

pytestmark = pytest.mark.processes

_COMMAND = (
    "import sys; from tokenbus.producer.commands.cli import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    """Run a server for the module."""
    running = start_private()
    yield running
    running.close()


@pytest.fixture
async def staged(server: EmbeddedServer) -> AsyncIterator[StagedPool]:
    """Give a pool that looks busy."""
    redis = make_redis(server.url)
    pool = StagedPool(Scripts(redis, f"p{uuid.uuid4().hex[:8]}"))
    await pool.add_workers(12)
    await pool.hold_jobs(3)
    await pool.add_jobs(40)
    await pool.add_ended(100, 50)
    yield pool
    await redis.aclose()


async def shown(pool: StagedPool, width: int = 120, height: int = 40) -> str:
    """Return what one look shows in a terminal of a size."""
    view, output = TopView(), io.StringIO()
    view.see(await PoolWatch(pool.scripts.redis, pool.scripts.keys).look())
    console = Console(file=output, width=width, height=height, highlight=False)
    console.print(view, height=height)
    return output.getvalue()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
async def test_look_fits_the_terminal(staged: StagedPool, width: int, height: int) -> None:
    """No line is longer and no screen higher than the terminal, and the figures are there."""
    lines = (await shown(staged, width, height)).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for word in ("waiting 40", "running 36", "first token", "gpu-01-0", "acme"):
        assert word in text, word


async def test_nothing_of_a_text_is_shown(staged: StagedPool) -> None:
    """Neither prompts nor ids of jobs are on the screen, and hostile names do nothing to it."""
    scripts = staged.scripts
    request = json.dumps({"v": 2, "prompt": "the secret"})
    await submit(scripts, a_job("secret-id@\x1b[2Jx", tenant="\x1b[2Jx", request=request))
    text = await shown(staged, 200, 60)
    assert "secret" not in text
    assert "\x1b[2J" not in text


async def test_lost_and_drained_workers_are_told(staged: StagedPool) -> None:
    """What needs a look stands at the top, with the names of the workers."""
    scripts = staged.scripts
    redis: Any = scripts.redis
    await redis.delete(scripts.keys.of("alive", "gpu-01-0"))
    await scripts.control.drain("gpu-01-1", is_drained=True)
    await scripts.control.pause(is_paused=True)
    text = await shown(staged)
    assert "gpu-01-0 was lost 0 s ago, and still holds 3 jobs" in text
    assert "drained" in text
    assert "PAUSED" in text


def test_command_prints_one_look_where_there_is_no_terminal(
    server: EmbeddedServer, staged: StagedPool
) -> None:
    """Into a pipe goes one look, and the command ends."""
    args = ["top", "--redis", server.url, "--pool", staged.scripts.keys.pool]
    with forked_command(*args) as process:
        said = process.stdout.read()
        assert process.join() == 0, process.stderr.read()
    assert "waiting 40" in said
    assert "\x1b" not in said


def _read_until(descriptor: int, wanted: bytes) -> bytes:
    """Return what a terminal shows up to something. Raises: AssertionError if it never does."""
    seen = b""
    while wanted not in seen:
        assert select.select([descriptor], [], [], PATIENCE_S)[0], f"never: {wanted!r} in {seen!r}"
        seen += os.read(descriptor, 65536)
    return seen


def test_key_ends_it_and_leaves_the_terminal_as_it_was(
    server: EmbeddedServer, staged: StagedPool
) -> None:
    """In a terminal it goes on until `q`, and puts the screen and its settings back."""
    import termios

    own, its = pty.openpty()
    before = termios.tcgetattr(its)
    args = ["top", "--redis", server.url, "--pool", staged.scripts.keys.pool]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _COMMAND, *args],
        stdin=its,
        stdout=its,
        stderr=its,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    try:
        seen = _read_until(own, b"waiting")
        assert b"\x1b[?1049h" in seen
        os.write(own, b"q")
        _read_until(own, b"\x1b[?1049l")
        assert process.wait(PATIENCE_S) == 0
        assert termios.tcgetattr(its) == before
    finally:
        process.kill()
        process.wait()
        os.close(own)
        os.close(its)
