"""Programs of an earlier release, as processes: its workers and its client.

Its code comes from the history of this repository, where that is there.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tarfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.null_workers import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True)
class Release:
    """A commit, and the modules in which it has its command line and its client."""

    commit: str
    command: str
    client: str


# The last commit that spoke wire version 1, from which the recorded pool of
# tests/integration/kept_pool comes too, and one that spoke version 2 before requests had more
# fields.
VERSION_1 = Release("759143b", "tokenbus.producer.cli", "tokenbus.producer.client")
VERSION_2 = Release(
    "a6ca237", "tokenbus.producer.commands.cli", "tokenbus.producer.client.async_client"
)
_ROOT = Path(__file__).resolve().parents[3]
_PACKAGES = ("engine", "kernels", "producer", "worker")
_CLIENT = """
import asyncio, importlib, json, sys
AsyncClient = importlib.import_module(sys.argv[2]).AsyncClient

async def main():
    url, pool, call, *given = json.loads(sys.argv[1])
    async with await AsyncClient.connect(url, pool=pool) as client:
        if call == "submit":
            job = await client.submit(**given[0])
            return [job.job_id, job.created]
        if call == "result":
            result = await client.result(given[0], timeout_s=given[1])
            return [result.text, result.finish.reason]
        return await client.cancel(given[0])

try:
    print(json.dumps(asyncio.run(main())))
except Exception as error:
    print(json.dumps({"error": type(error).__name__, "message": str(error)}))
"""


class EarlierRelease:
    """The code of a release, unpacked in a folder."""

    def __init__(self, folder: Path, release: Release = VERSION_1) -> None:
        self._release = release
        archive = folder / "release.tar"
        made = subprocess.run(
            [
                shutil.which("git") or "git",
                "-C",
                str(_ROOT),
                "archive",
                "-o",
                str(archive),
                release.commit,
                *_PACKAGES,
            ],
            capture_output=True,
            check=False,
        )
        if made.returncode != 0:
            pytest.skip(f"commit {release.commit} is not in this checkout's history")
        home = folder / "tokenbus"
        with tarfile.open(archive) as opened:
            opened.extractall(home, filter="data")
        self._env = os.environ | {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}

    async def call(self, url: str, pool: str, call: str, *given: Any) -> Any:
        """Let its client make one call; an error comes back as an object."""
        arguments = json.dumps([url, pool, call, *given])
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", _CLIENT, arguments, self._release.client),
            env=self._env,
            stdout=subprocess.PIPE,
        )
        async with asyncio.timeout(2 * PATIENCE_S):
            out, _ = await process.communicate()
        return json.loads(out)

    @asynccontextmanager
    async def worker(self, url: str, pool: str, **values: Any) -> AsyncIterator[WorkerProcess]:
        """Run one of its workers; it is killed at the end."""
        given = {"engine": "null", "log_level": "error"} | values
        settings = {f"TOKENBUS_{name.upper()}": str(value) for name, value in given.items()}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", self._release.command, "worker"),
            *("--redis", url, "--pool", pool),
            env=self._env | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield WorkerProcess(process)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
