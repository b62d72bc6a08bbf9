"""A newcomer with the pages alone: a pool, a load, an incident that the dashboard tells, its end.

Every line that is typed stands in docs/incidents.md. With `TOKENBUS_PICTURES` set to a folder the
pictures of the incidents are left there; `TOKENBUS_INCIDENT` names the one that is drawn.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser.chromium import chromium
from house.drills import Drill, drills, pool_lines
from house.shell import Newcomer
from models.tiny_model import TinyModel
from servers.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from subprocess import Popen

    from browser.chromium import Page

DRILLS = drills()
PICTURES = os.environ.get("TOKENBUS_PICTURES", "")
DRAWN = os.environ.get("TOKENBUS_INCIDENT") or random.choice(sorted(DRILLS))
# What the page says once nothing but notes is left.
CLEAN = "!document.querySelector('.all-well')?.hidden && document.querySelector('.all-well')"

pytestmark = [pytest.mark.slow, pytest.mark.processes]


async def _type(shell: Newcomer, line: str) -> None:
    """Type a line into a terminal; one that reads for a while has a terminal of its own."""
    await asyncio.to_thread(shell.type, line, waits=not line.startswith("timeout "))
    if shell.last.poll() is None:
        shell.leave()


@asynccontextmanager
async def arrived(folder: Path) -> AsyncIterator[tuple[Newcomer, Page, Popen[str]]]:
    """Start what the page starts, from an empty home, and look at the dashboard.

    The process is that of the worker whose number the page calls PID.
    """
    if shutil.which("redis-server") is None:
        pytest.skip("there is no redis-server, with which the pool of the page begins")
    TinyModel(folder / "model")
    ports = {port: str(free_port()) for port in ("6390", "8010")}
    given = ports | {"smollm2-135m": str(folder / "model")}
    with Newcomer(folder / "home", given) as shell:
        async with chromium() as browser:
            *services, load = pool_lines()
            for line in services:
                await _type(shell, line)
            worker = shell.last
            shell.given["PID"] = str(worker.pid)
            page = await browser.page()
            await page.open(f"http://127.0.0.1:{ports['8010']}/ui/")
            ready = "document.querySelectorAll('.fleet > li[data-phase=ready]').length === 2"
            await page.until(f"{ready} && {CLEAN}")
            await _type(shell, load)
            await page.until("document.querySelectorAll('.fleet .seat-held[d*=M]').length === 2")
            yield shell, page, worker


async def _live_through(drill: Drill, shell: Newcomer, page: Page) -> None:
    """Make an incident, find it on the dashboard with where to read on, mend it, see it gone."""
    entry = f".conditions li[data-code={drill.code}]"
    for line in drill.make:
        await _type(shell, line)
        if drill.code == "wrong_checkpoint":
            shell.given["PID"] = str(shell.last.pid)
    told = await page.until(f"document.querySelector('{entry}')?.innerText")
    print(told)
    if PICTURES:
        await page.picture(Path(PICTURES) / f"incident-{drill.code.replace('_', '-')}.png")
    link = await page.js(f"document.querySelector('{entry} a').href")
    assert link.endswith(f"/ui/incidents.html#{drill.code}")
    read = await page.js(f"fetch({link!r}).then((answer) => answer.text())")
    for line in drill.mend:
        assert line.split()[0] in read.partition(f'id="{drill.code}"')[2]
        await _type(shell, line)
    await page.until(f"{CLEAN} && !document.querySelector('{entry}:not([data-level=note])')")
    # The browser notes a request that the gateway had no answer for.
    assert page.errors == []


@pytest.mark.parametrize("code", sorted(DRILLS))
async def test_incident_is_told_and_mended_by_the_page(code: str, tmp_path: Path) -> None:
    """Each incident, made for real: told with its cause and where to read on, gone once mended."""
    async with arrived(tmp_path) as (shell, page, _):
        await _live_through(DRILLS[code], shell, page)


async def test_newcomer_finds_and_mends_what_happens(tmp_path: Path) -> None:
    """Under load a worker is killed, and something drawn goes wrong: both are found and mended."""
    print(f"TOKENBUS_INCIDENT={DRAWN}")
    async with arrived(tmp_path) as (shell, page, killed):
        await _live_through(DRILLS["worker_lost"], shell, page)
        assert killed.wait() == -signal.SIGKILL
        if DRAWN != "worker_lost":
            await _live_through(DRILLS[DRAWN], shell, page)
