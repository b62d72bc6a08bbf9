"""The dashboard in a real Chromium: an incident, a talk that survives a reload, roles, keyboard.

Where there is no Chromium the tests are skipped and say so. With `TOKENBUS_PICTURES` set to a
folder they leave the pictures there that docs/dashboard.md shows.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from browser.chromium import Browser, Page, chromium
from gateways.doors import door
from workers.brake import Brake
from workers.null_workers import worker, worker_process
from workers.stubs import raw, until

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.gateway.access.api_keys import ApiKeys
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from gateways.doors import Door

    from tokenbus.producer.server.embedded import EmbeddedServer

pytestmark = [pytest.mark.processes, pytest.mark.asyncio(loop_scope="module")]

PICTURES = os.environ.get("TOKENBUS_PICTURES", "")
SHOP = "You answer for a shop that sells lamps, and you are short and polite. " * 12


@pytest.fixture(scope="module")
def own_server() -> Iterator[EmbeddedServer]:
    """Run a server that no other module makes keys on."""
    running = start_private()
    yield running
    running.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    """Run one browser for the module."""
    async with chromium() as running:
        yield running


@pytest.fixture
def pool() -> str:
    """Return a pool that no other test uses."""
    return f"shop-{uuid.uuid4().hex[:6]}"


@asynccontextmanager
async def looking(
    browser: Browser, running: Door, place: str = "", *, height: int = 900
) -> AsyncIterator[Page]:
    """Open the page; at the end it has asked nobody but this gateway, and its console is empty."""
    page = await browser.page(height=height)
    await page.open(f"{running.url}/ui/{place}")
    yield page
    assert {url for url in page.urls if not url.startswith(running.url)} <= {"about:blank"}
    assert page.errors == []


async def picture(page: Page, name: str) -> None:
    """Take a picture for the docs, where they are asked for."""
    if PICTURES:
        await page.resize(1200, 640)
        await page.picture(Path(PICTURES) / f"dashboard-{name}.png")
        await page.resize(1360, 900)


@pytest.mark.slow
async def test_incident_is_found_on_the_page(
    browser: Browser, own_server: EmbeddedServer, pool: str
) -> None:
    """A worker that is killed is told, seen in the fleet, and read in its job's timeline."""
    url = own_server.url
    sizes: dict[str, Any] = {"lease_ttl_s": 5, "renew_interval_s": 0.5, "null_tokens_per_s": 30}
    sizes |= {"num_pages": 401, "max_num_seqs": 16}
    async with (
        worker_process(pool, url, **sizes) as killed,
        worker(pool, url, **sizes),
        door(url, pool) as running,
        await AsyncClient.connect(url, pool) as client,
        looking(browser, running) as page,
    ):
        await page.until("document.querySelectorAll('.fleet > li[data-phase=ready]').length === 2")
        names = await page.js(
            "[...document.querySelectorAll('.fleet > li b')].map((each) => each.textContent).sort()"
        )
        for number in range(60):
            await client.submit(
                f"{SHOP}Question {number}", max_tokens=150 + 10 * (number % 7),
                tenant=("acme", "zen", "lamps-and-more")[number % 3], priority=number % 3,
            )  # fmt: skip
        # Both run jobs, and have said a word of each.
        await _all_talk(client)
        await page.until(
            "document.querySelectorAll('.fleet .seat-held[d*=M]').length >= 2"
            " && document.querySelector('.chart .line[d*=L]')"
        )
        killed.process.kill()
        await page.until("document.querySelector('.fleet > li[data-phase=lost]')")
        told = await page.until(
            "[...document.querySelectorAll('.conditions li')].map((each) => each.textContent)"
            ".find((each) => each.includes('was lost'))"
        )
        lost = next(name for name in names if name in told)
        await picture(page, "worker-lost")
        await page.paint(dark=True)
        await picture(page, "dark")
        await page.paint(dark=False)
        resumed = await _resumed_job(client, lost)
        tenant, _, job_id = resumed.partition("\n")
        await page.js(f"location.hash = '#/jobs/{tenant}/{job_id}'")
        lines = await page.until(
            "document.querySelector('.stamps li[data-kind=b]') &&"
            " [...document.querySelectorAll('.stamps li')].map((each) => each.innerText)"
        )
        text = "\n".join(lines)
        assert lost in text
        assert "Worker lost" in text
        await page.until("document.querySelector('.stamps li[data-kind=e]')")
        await picture(page, "timeline")
        assert "Resumed" in await page.js("document.querySelector('.stamps').innerText")
        drawn = await page.js("document.querySelector('.track').getAttribute('aria-label')")
        assert "back in the queue" in drawn


async def _all_talk(client: AsyncClient) -> None:
    """Wait until each worker has logged tokens of a job that it holds."""
    keys, redis = client.scripts.keys, raw(client.scripts)
    while True:
        workers = await redis.smembers(keys.of("workers"))
        talking = set()
        for name in workers:
            for job in await redis.hkeys(keys.of("held", name.decode())):
                if await redis.xlen(keys.log(job.decode())) > 1:
                    talking.add(name)
        if len(talking) == 2:
            return
        await asyncio.sleep(0.05)


async def _resumed_job(client: AsyncClient, lost: str) -> str:
    """Return tenant and id of a job that a lost worker had begun and another has taken since."""
    keys, redis = client.scripts.keys, raw(client.scripts)
    while True:
        for worker_name in await redis.smembers(keys.of("workers")):
            for job in await redis.hkeys(keys.of("held", worker_name.decode())):
                stamps = await redis.hget(keys.of("job", job.decode()), "stamps") or b""
                if lost.encode() in stamps and b":worker:" in stamps:
                    job_id, _, tenant = job.decode().partition("@")
                    return f"{tenant or 'default'}\n{job_id}"
        await asyncio.sleep(0.05)


async def test_answer_of_the_playground_survives_a_reload(
    browser: Browser, own_server: EmbeddedServer, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is loaded anew in mid-answer has all of it in the end, and no token twice."""
    url = own_server.url
    brake = Brake(monkeypatch, num_ahead=10)
    brake.set(10)
    async with (
        worker(pool, url, lease_ttl_s=60),
        door(url, pool) as running,
        looking(browser, running, "#/playground") as page,
    ):
        await page.until("document.querySelector('select[aria-label=Model] option')")
        await page.js(
            "document.querySelector('input[inputmode]').value = '60';"
            "document.getElementById('question').focus()"
        )
        await page.type("Which lamp is the brightest?")
        await page.press("Enter", code=13, modifiers=2)
        answer = "document.querySelector('.turns li[data-role=assistant] span:nth-child(2)')"
        before = await page.until(f"{answer}?.textContent.length > 20 && {answer}.textContent")
        await page.reload()
        await page.until(
            f"{answer}?.textContent.length > 0 && document.querySelector('.ask .primary').disabled"
        )
        brake.resume()
        await page.until(
            "document.querySelector('.ask .primary') &&"
            " !document.querySelector('.ask .primary').disabled && " + answer
        )
        text = await page.js(f"{answer}.textContent")
        job_id = await page.js("JSON.parse(sessionStorage['tokenbus.talk']).turns.at(-1).id")
        stored = (await running.get(f"/v1/jobs/{job_id}")).json
        assert text == stored["choices"][0]["message"]["content"]
        assert text.startswith(before)
        assert "60 tokens" in await page.js("document.querySelector('.turns').innerText")
        await picture(page, "playground")


async def test_page_asks_for_a_key_and_shows_what_its_role_may(
    browser: Browser, own_server: EmbeddedServer, pool: str
) -> None:
    """A viewer sees neither texts nor buttons that act; an operator pauses the pool from here."""
    url = own_server.url
    async with (
        await AsyncClient.connect(url, pool) as client,
        door(url, pool, gateway_auth="keys") as running,
    ):
        keys = ApiKeys(client.scripts.redis)
        viewer, _ = await keys.create(tenant="shop", roles=("viewer",))
        operator, _ = await keys.create(tenant="shop", roles=("operator", "reader"))
        job = await client.submit("Where is my blue lamp?", max_tokens=9, tenant="acme")
        place = f"#/jobs/acme/{job.job_id}"
        async with _signed_in(browser, running, viewer, place) as page:
            await page.until("document.querySelector('.stamps')")
            text = await page.js("document.body.innerText")
            assert "blue lamp" not in text
            assert "role reader" in text
            assert await page.js("!document.getElementById('cancel-job')")
            assert await page.js("document.getElementById('pause').hidden")
        async with _signed_in(browser, running, operator, place) as page:
            await page.until(
                "document.querySelector('.story pre')?.innerText.includes('blue lamp')"
            )
            await page.click("#pause")
            await page.click("dialog button.danger")
            await page.until("document.getElementById('pause').textContent === 'Resume pool'")
            assert (await client.status()).paused_for_s is not None
            await page.click("#cancel-job")
            await page.click("dialog button.danger")
            await page.until("document.querySelector('.stamps li[data-kind=e]')")
            assert await page.js("sessionStorage['tokenbus.key'].startsWith('tb-')")
            assert await page.js("JSON.stringify(localStorage).includes('tb-')") is False


@asynccontextmanager
async def _signed_in(browser: Browser, running: Door, key: str, place: str) -> AsyncIterator[Page]:
    page = await browser.page()
    await page.open(f"{running.url}/ui/{place}")
    await page.until("document.activeElement.id === 'api-key'")
    await page.type("wrong")
    await page.press("Enter", code=13, text="\r")
    await page.until("document.querySelector('.wrong')?.textContent")
    await page.until("document.activeElement.id === 'api-key'")
    await page.type(key)
    await page.press("Enter", code=13, text="\r")
    await page.until("document.querySelector('nav [aria-current]')")
    yield page
    # What was refused for the want of a key is all that the console has.
    assert [error for error in page.errors if " 401 " not in f" {error} "] == []


async def _tells_of_pages(page: Page, worker: str) -> bool:
    """Tell whether the picture of a worker's pages is told in words."""
    return any("free" in name and worker in name for _, name in await page.spoken())


async def test_page_is_used_without_a_mouse_and_read_without_eyes(
    browser: Browser, own_server: EmbeddedServer, pool: str
) -> None:
    """Everything that acts has a name, the fleet is told in words, and keys lead everywhere."""
    url = own_server.url
    async with (
        worker(pool, url, lease_ttl_s=60) as running_worker,
        door(url, pool) as running,
        await AsyncClient.connect(url, pool) as client,
        looking(browser, running) as page,
    ):
        job = await client.submit("One line, please.", max_tokens=4, tenant="acme")
        await client.result(job)
        await page.until("document.querySelector('.fleet > li[data-phase=ready]')")
        # The browser tells what is read aloud a moment after it shows it.
        await until(lambda: _tells_of_pages(page, running_worker.name))
        spoken = await page.spoken()
        nameless = [role for role, name in spoken if not name and role in _NAMED]
        assert nameless == []
        pictures = [name for role, name in spoken if role in ("image", "img")]
        assert any("Tokens per second in the last 15 minutes" in name for name in pictures)
        await page.press("Tab", code=9)
        assert await page.js("document.activeElement.id") == "skip"
        await page.press("Enter", code=13, text="\r")
        assert await page.js("document.activeElement.id") == "main"
        await page.press("/", code=191, text="/")
        await page.until("document.activeElement.id === 'search'")
        await page.type(job.job_id[-8:])
        await page.until("document.querySelectorAll('tbody tr').length === 1")
        await page.js("document.querySelector('tbody a').focus()")
        await page.press("Enter", code=13, text="\r")
        await page.until("document.querySelector('.stamps li[data-kind=e]')")
        await page.press("Escape", code=27)
        await page.until("document.querySelector('.story').hidden")
        await page.press("t", code=84, text="t")
        assert await page.js("document.documentElement.dataset.theme") == "dark"
        await page.press("3", code=51, text="3")
        await page.until("document.querySelector('#letters-title')")
        names = [name for role, name in await page.spoken() if role in ("link", "button")]
        assert {"Overview", "Jobs", "Theme"} <= set(names)


_NAMED = {"link", "button", "combobox", "textbox", "searchbox", "image", "img", "table", "region"}


@pytest.mark.slow
async def test_page_tells_that_the_gateway_is_away_and_comes_back(
    browser: Browser, own_server: EmbeddedServer, pool: str
) -> None:
    """What is shown says of when it is while nobody answers, and is live again afterwards."""
    async with (
        door(own_server.url, pool) as running,
        looking(browser, running) as page,
    ):
        await page.until("document.getElementById('live').dataset.state === 'live'")
        await page.until("document.querySelector('.tile')")
        await page.call(
            "Network.emulateNetworkConditions",
            offline=True,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )
        told = await page.until(
            "!document.getElementById('outage').hidden &&"
            " document.getElementById('outage').textContent"
        )
        assert "What is shown is of" in told
        await page.call(
            "Network.emulateNetworkConditions",
            offline=False,
            latency=0,
            downloadThroughput=-1,
            uploadThroughput=-1,
        )
        await page.until("document.getElementById('outage').hidden")
        # The browser itself notes each request that it could not make.
        page.errors = [error for error in page.errors if "ERR_INTERNET_DISCONNECTED" not in error]
