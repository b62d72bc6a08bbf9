"""The password of the server in the processes of a worker, as everyone on the machine sees them."""

from __future__ import annotations

import asyncio
import os
import random
import string
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
from patience import PATIENCE_S

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.server.connection import make_redis
from tokenbus.producer.server.embedded import start_private

COMMAND = (sys.executable, "-P", "-m", "tokenbus.producer.commands.cli")
NUM_PASSWORDS = 10


def descendants(pid: int) -> list[int]:
    """List all processes below one, the engine and the publishers of a worker."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = [pid]
    for parent in found:
        found += [child for child, above in parents.items() if above == parent]
    return found[1:]


def drawn_password(number: int) -> str:
    """Draw a password of all printable ASCII and some letters beyond."""
    rng = random.Random(1000 + number)
    alphabet = string.ascii_letters + string.digits + string.punctuation + " äß日\u2100\uff1f"
    return "".join(rng.choice(alphabet) for _ in range(24))


@pytest.mark.parametrize(
    "number", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, NUM_PASSWORDS))]
)
async def test_password_is_in_no_process_below_a_worker(number: int, pool: str) -> None:
    """A worker that has it from the environment tells it no argv, no environment and no log."""
    password = drawn_password(number)
    server = start_private()
    opened = make_redis(server.url)
    await opened.config_set("requirepass", password)
    await opened.aclose()
    url = f"{server.url}?password={quote(password, safe='')}"
    env = os.environ | {"TOKENBUS_REDIS_URL": url, "TOKENBUS_PUBLISHERS": "1"}
    arguments = ("worker", "--engine", "null", "--pool", pool, "--log-level", "debug")
    worker = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        async with await AsyncClient.connect(url, pool) as client:
            job = await client.submit("hello", max_tokens=4)
            await client.result(job, timeout_s=PATIENCE_S)
        children = descendants(worker.pid)
        texts = [(Path("/proc") / str(worker.pid) / "cmdline").read_bytes()]
        for pid in children:
            texts += [(Path("/proc") / str(pid) / n).read_bytes() for n in ("cmdline", "environ")]
        status = await asyncio.create_subprocess_exec(
            *COMMAND, "status", "--pool", pool, env=env, stdout=-1, stderr=subprocess.STDOUT
        )
        texts.append((await status.communicate())[0])
        assert status.returncode == 0
        worker.terminate()
        texts.append((await worker.communicate())[0])
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
        server.close()
    assert len(children) >= 2, "engine and publisher"
    for form in (password, quote(password, safe="")):
        assert not [text for text in texts if form.encode() in text]
