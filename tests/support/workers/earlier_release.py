"""Programs of the release that spoke wire version 1, as processes: its workers and its client.

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S
from workers.null_workers import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# The last commit that the recorded pool of tests/integration/kept_pool comes from, too.
COMMIT = "759143b"
_ROOT = Path(__file__).resolve().parents[3]
_PACKAGES = ("engine", "kernels", "producer", "worker")
_CLIENT = """
import asyncio, json, sys
from tokenbus.producer.client import AsyncClient

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
    """The code of version 1, unpacked in a folder."""

    def __init__(self, folder: Path) -> None:
        archive = folder / "release.tar"
        made = subprocess.run(
            [
                shutil.which("git") or "git",
                "-C",
                str(_ROOT),
                "archive",
                "-o",
                str(archive),
                COMMIT,
                *_PACKAGES,
            ],
            capture_output=True,
            check=False,
        )
        if made.returncode != 0:
            pytest.skip(f"commit {COMMIT} is not in this checkout's history")
        home = folder / "tokenbus"
        with tarfile.open(archive) as opened:
            opened.extractall(home, filter="data")
        self._env = os.environ | {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}

    async def call(self, url: str, pool: str, call: str, *given: Any) -> Any:
        """Let its client make one call; an error comes back as an object."""
        arguments = json.dumps([url, pool, call, *given])
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-c", _CLIENT, arguments, env=self._env, stdout=subprocess.PIPE
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
            *(sys.executable, "-P", "-m", "tokenbus.producer.cli", "worker"),
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
