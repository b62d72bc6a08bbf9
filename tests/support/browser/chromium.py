"""A real Chromium for tests, driven over a pipe by its own protocol, with nothing beside it."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# The browser reads commands from descriptor 3 and writes answers to 4.
_LAUNCH = "import os, sys; os.dup2({0}, 3); os.dup2({1}, 4); os.execv(sys.argv[1], sys.argv[1:])"
_OPTIONS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-first-run", "--no-default-browser-check"),
    *("--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--mute-audio"),
    # It measures memory by hand, and times by a clock that nobody coarsens.
    *("--js-flags=--expose-gc", "--enable-precise-memory-info", "--font-render-hinting=none"),
)


def chromium_path() -> str:
    """Return the browser of this machine; skip the test where there is none."""
    named = os.environ.get("TOKENBUS_TEST_CHROMIUM")
    found = named or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: the dashboard was not looked at in a browser")
    return found


class Browser:
    """A browser process and its protocol."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[str, Page] = {}

    async def read(self) -> None:
        """Take answers and events until the browser ends."""
        while True:
            try:
                message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            except asyncio.IncompleteReadError:
                return
            waiting = self._waiting.pop(message.get("id", 0), None)
            if waiting is None:
                page = self._pages.get(message.get("sessionId", ""))
                if page is not None:
                    page.hear(message.get("method", ""), message.get("params", {}))
            elif not waiting.done():
                waiting.set_result(message)

    async def call(self, method: str, session: str = "", **params: Any) -> Any:
        """Send a command and return its result. Raises: AssertionError where it is refused."""
        number = next(self._numbers)
        command: dict[str, Any] = {"id": number, "method": method, "params": params}
        if session:
            command["sessionId"] = session
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(json.dumps(command).encode() + b"\0")
        async with asyncio.timeout(PATIENCE_S):
            message = await answer
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    async def page(self, *, width: int = 1360, height: int = 860, dark: bool = False) -> Page:
        """Open a page with storage of its own."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        target = await self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        made = Page(self, attached["sessionId"])
        self._pages[attached["sessionId"]] = made
        for domain in ("Page", "Runtime", "Network", "Log", "DOM", "Accessibility"):
            await made.call(f"{domain}.enable")
        # Of metrics, durations are processor time of the page's main thread.
        await made.call("Performance.enable", timeDomain="threadTicks")
        await made.resize(width, height)
        await made.paint(dark=dark)
        return made


class Page:
    """One page; `errors` are what its console says, `urls` what it asked for."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session
        self.errors: list[str] = []
        self.urls: deque[str] = deque(maxlen=10_000)

    def hear(self, event: str, params: dict[str, Any]) -> None:
        """Note an event."""
        if event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(str(details.get("exception", {}).get("description", details)))
        elif event == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.urls.append(params["request"]["url"])

    async def call(self, method: str, **params: Any) -> Any:
        """Send a command to the page."""
        return await self._browser.call(method, self._session, **params)

    async def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Set the size of the window, in CSS pixels."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    async def paint(self, *, dark: bool) -> None:
        """Let the system ask for light or for dark."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def open(self, url: str) -> None:
        """Go to a page."""
        await self.call("Page.navigate", url=url)

    async def reload(self) -> None:
        """Load the page anew."""
        await self.call("Page.reload")

    async def js(self, code: str) -> Any:
        """Return what an expression comes to; a promise is waited for."""
        answer = await self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, f"{code}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait until an expression holds, looking at every frame; return what it comes to."""
        code = f"""new Promise((done) => {{
            const look = () => {{
                let found = null;
                try {{ found = {condition}; }} catch {{ found = null; }}
                if (found) done(found); else setTimeout(look, 20);
            }};
            look();
        }})"""
        try:
            # The page may be replaced while it is looked at.
            while True:
                answer = await self.call(
                    "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
                )
                if "exceptionDetails" not in answer and "value" in answer["result"]:
                    return answer["result"]["value"]
        except (AssertionError, TimeoutError) as error:
            if "navigated" in str(error) or "context" in str(error):
                return await self.until(condition)
            text = await self.js("document.body.innerText")
            raise AssertionError(
                f"{condition} never held; the page says:\n{text}\n{self.errors}"
            ) from error

    async def click(self, selector: str) -> None:
        """Click the middle of an element with a mouse."""
        await self.until(f"document.querySelector({selector!r})?.checkVisibility()")
        x, y = await self.js(
            f"(() => {{ const e = document.querySelector({selector!r});"
            "e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1
            )

    async def press(self, key: str, *, code: int = 0, text: str = "", modifiers: int = 0) -> None:
        """Press and release a key of the keyboard."""
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
                modifiers=modifiers,
            )

    async def type(self, text: str) -> None:
        """Write a text where the focus is."""
        await self.call("Input.insertText", text=text)

    async def picture(self, path: Path | None = None, *, height: int | None = None) -> bytes:
        """Take a picture of what is seen, as PNG."""
        params: dict[str, Any] = {}
        if height is not None:
            width = await self.js("document.documentElement.clientWidth")
            params["clip"] = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            params["captureBeyondViewport"] = True
        shot = await self.call("Page.captureScreenshot", format="png", **params)
        content = base64.b64decode(shot["data"])
        if path is not None:
            await asyncio.to_thread(path.write_bytes, content)
        return content

    async def heap_bytes(self) -> int:
        """Return what the page's objects take once all that nobody needs is gone."""
        await self.call("HeapProfiler.collectGarbage")
        return int((await self.call("Runtime.getHeapUsage"))["usedSize"])

    async def cpu_ms(self) -> float:
        """Return what its main thread has worked since the page was opened, in ms."""
        metrics = (await self.call("Performance.getMetrics"))["metrics"]
        [worked_s] = [each["value"] for each in metrics if each["name"] == "TaskDuration"]
        return 1000 * float(worked_s)

    async def spoken(self) -> list[tuple[str, str]]:
        """Return role and name of everything that a screen reader meets."""
        nodes = (await self.call("Accessibility.getFullAXTree"))["nodes"]
        return [
            (node.get("role", {}).get("value", ""), node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored")
        ]


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """Run a browser without a window; it is killed at the end."""
    path = chromium_path()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        commands, answers = os.pipe(), os.pipe()
        # Above the descriptors that the browser wants.
        child_ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 20) for end in (commands[0], answers[1])]
        for end in (commands[0], answers[1]):
            os.close(end)
        sandbox = ("--no-sandbox",) if os.geteuid() == 0 else ()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-S", "-c", _LAUNCH.format(*child_ends), path),
            *(*_OPTIONS, *sandbox, f"--user-data-dir={folder}", "about:blank"),
            pass_fds=child_ends,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in child_ends:
            os.close(end)
        browser, writer = await _connected(commands[1], answers[0])
        reading = asyncio.create_task(browser.read())
        try:
            yield browser
        finally:
            reading.cancel()
            writer.close()
            if process.returncode is None:
                os.killpg(process.pid, 9)
            await process.wait()


async def _connected(to_browser: int, from_browser: int) -> tuple[Browser, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**28)
    await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(from_browser, "rb", 0)
    )
    transport, protocol = await loop.connect_write_pipe(
        asyncio.streams.FlowControlMixin, os.fdopen(to_browser, "wb", 0)
    )
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    return Browser(reader, writer), writer
